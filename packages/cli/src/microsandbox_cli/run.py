"""`msb run`, `create` and `exec`: from options to a running command and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox import _config, _create, _state
from microsandbox.errors import ConfigError, ExecFailed, MicrosandboxError, OutcomeUnknown
from microsandbox_core import env as environment

from microsandbox_cli import report

if TYPE_CHECKING:
    from microsandbox import Sandbox
    from microsandbox._create import Pending
    from microsandbox.execution import ExecHandle

    from microsandbox_cli.terminal import DetachKeys


def run_new(
    image: str,
    command: Sequence[str],
    *,
    name: str | None = None,
    env: Sequence[str] = (),
    workdir: str | None = None,
    user: str | None = None,
    memory: str | None = None,
    cpus: int | None = None,
    hostname: str | None = None,
    entrypoint: str | None = None,
    timeout: str | None = None,
    vmm: str = "auto",
    require_kvm: bool = False,
    cold: bool = False,
    max_duration: str | None = None,
    idle_timeout: str | None = None,
    no_stdin: bool = False,
    tty: bool = False,
    no_tty: bool = False,
    label: Sequence[str] = (),
    replace: bool = False,
    replace_with_grace: str | None = None,
    quiet: bool = False,
) -> None:
    """Run a command in a new sandbox and exit with its code."""
    seconds = None if timeout is None else _config.parse_duration(timeout, "--timeout")
    config = _configured(
        name, env, workdir, user, memory, cpus, hostname, entrypoint, vmm, require_kvm, cold,
        max_duration, idle_timeout,
    )  # fmt: skip
    if command:
        config = config._replace(cmd=tuple(command))  # so that others can see what runs in it
    terminal = _wants_terminal(tty, no_tty, no_stdin)
    pending = _begin(
        image, config, name, quiet=quiet, attached=True, labels=_config.parse_labels(label),
        grace=_config.replacement_grace(name, replace, replace_with_grace),
    )  # fmt: skip
    # The VM is on its way; what is imported from here on costs nothing.
    from microsandbox_cli.attached import run_in_loop

    async def main() -> int:
        from microsandbox import Sandbox

        sandbox = await Sandbox.adopt(pending)
        async with sandbox:
            _tell_isolation(sandbox, quiet)
            attached = _attach(
                sandbox, sandbox.command(command, shell=terminal), env={}, workdir=None, user=None,
                timeout=seconds, stdin=not no_stdin, terminal=terminal,
            )  # fmt: skip
            if config.max_duration is None and config.idle_timeout is None:
                return await attached
            return await _within_limits(sandbox, attached)

    run_in_loop(main)


def create_detached(
    image: str,
    *,
    name: str,
    env: Sequence[str] = (),
    workdir: str | None = None,
    user: str | None = None,
    memory: str | None = None,
    cpus: int | None = None,
    hostname: str | None = None,
    entrypoint: str | None = None,
    vmm: str = "auto",
    require_kvm: bool = False,
    cold: bool = False,
    max_duration: str | None = None,
    idle_timeout: str | None = None,
    label: Sequence[str] = (),
    replace: bool = False,
    replace_with_grace: str | None = None,
    quiet: bool = False,
) -> None:
    """Create a named sandbox, leave it running, print its name."""
    config = _configured(
        name, env, workdir, user, memory, cpus, hostname, entrypoint, vmm, require_kvm, cold,
        max_duration, idle_timeout,
    )  # fmt: skip
    pending = _begin(
        image, config, name, quiet=quiet, attached=False, labels=_config.parse_labels(label),
        grace=_config.replacement_grace(name, replace, replace_with_grace),
    )  # fmt: skip
    from microsandbox_cli.attached import run_in_loop

    async def main() -> int:
        from microsandbox import Sandbox

        sandbox = await Sandbox.adopt(pending)
        _tell_isolation(sandbox, quiet)
        await sandbox.detach()
        sys.stdout.write(sandbox.name + "\n")
        return 0

    run_in_loop(main)


def exec_in(
    name: str,
    command: Sequence[str],
    *,
    env: Sequence[str] = (),
    workdir: str | None = None,
    user: str | None = None,
    timeout: str | None = None,
    no_stdin: bool = False,
    tty: bool = False,
    no_tty: bool = False,
    detach_keys: str | None = None,
) -> None:
    """Run a command in a running sandbox and exit with its code."""
    terminal = _wants_terminal(tty, no_tty, no_stdin)
    if not command and not terminal:
        report.error("no command was given", f"msb exec {name} -- COMMAND")
        sys.exit(report.EXIT_USAGE)
    seconds = None if timeout is None else _config.parse_duration(timeout, "--timeout")
    variables = _variables(env)
    from microsandbox_cli.attached import run_in_loop

    keys = None
    if terminal or detach_keys is not None:
        from microsandbox_cli.terminal import DETACH_KEYS, DetachKeys

        keys = DetachKeys.parse(DETACH_KEYS if detach_keys is None else detach_keys)

    async def main() -> int:
        from microsandbox import Sandbox

        sandbox = await Sandbox.get(name)
        try:
            return await _attach(
                sandbox, tuple(command) or ("/bin/sh",), env=variables, workdir=workdir, user=user,
                timeout=seconds, stdin=not no_stdin, terminal=terminal, keys=keys,
            )  # fmt: skip
        finally:
            await sandbox.detach()

    run_in_loop(main)


def _wants_terminal(tty: bool, no_tty: bool, no_stdin: bool) -> bool:
    """Whether the command gets a terminal: if it is asked for, or if ours is one at both ends."""
    if tty and no_tty:
        report.error("--tty and --no-tty exclude each other", "give one of them, or none")
        sys.exit(report.EXIT_USAGE)
    return tty or (not (no_tty or no_stdin) and os.isatty(0) and os.isatty(1))


def _configured(
    name: str | None,
    env: Sequence[str],
    workdir: str | None,
    user: str | None,
    memory: str | None,
    cpus: int | None,
    hostname: str | None,
    entrypoint: str | None,
    vmm: str,
    require_kvm: bool,
    cold: bool,
    max_duration: str | None,
    idle_timeout: str | None,
) -> _config.SandboxConfig:
    """The settings, checked; so is the name."""
    config = _config.SandboxConfig(
        cpus=_config.parse_cpus(_config.DEFAULT_CPUS if cpus is None else cpus),
        memory_mib=_config.parse_memory(_config.DEFAULT_MEMORY_MIB if memory is None else memory),
        hostname=None if hostname is None else _config.check_hostname(hostname),
        env=_config.check_env(_variables(env)),
        workdir=workdir,
        user=user,
        entrypoint=None if entrypoint is None else _entrypoint(entrypoint),
        vmm=vmm,
        require_kvm=require_kvm,
        cold=cold,
        max_duration=_config.parse_limit(max_duration, "--max-duration"),
        idle_timeout=_config.parse_limit(idle_timeout, "--idle-timeout"),
    )
    if name is not None:
        _config.check_name(name)
    return config


def _begin(
    image: str,
    config: _config.SandboxConfig,
    name: str | None,
    *,
    quiet: bool,
    attached: bool,
    labels: tuple[tuple[str, str], ...],
    grace: float | None,
) -> Pending:
    home = environment.home()
    from microsandbox_cli.progress import LoadProgress

    with LoadProgress(quiet=quiet) as progress:
        found = _create.resolve_image(home, image, progress=progress)
    if grace is not None and name is not None:
        from microsandbox import _replace

        # While it may still be interrupted.
        _replace.make_room(home, name, grace)
    # From here on a Ctrl-C waits until the event loop can take the sandbox down with it.
    report.hold_signals()
    _state.leave_open()
    if grace is not None and name is not None:
        return _replace.begin(
            home, found, config, shown_image=image, name=name, grace=0.0, attached=attached, labels=labels
        )
    return _create.begin(
        home, found, config, shown_image=image, name=name, attached=attached, ephemeral=name is None,
        labels=labels,
    )  # fmt: skip


def _entrypoint(program: str) -> tuple[str, ...]:
    # An empty string drops the image's entrypoint, as with Docker.
    return (program,) if program else ()


def _variables(given: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE`, or `KEY` with the host's value; a KEY that the host does not have is left out."""
    variables = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not key:
            raise ConfigError(f"--env: {item!r} has no name", hint="use -e KEY=VALUE or -e KEY")
        if equals:
            variables[key] = value
        elif key in os.environ:
            variables[key] = os.environ[key]
    return variables


def _tell_isolation(sandbox: Sandbox, quiet: bool) -> None:
    """Once per home: emulation must never come unannounced, and never be a nuisance either."""
    if sandbox.ready is not None and sandbox.ready.cold:
        report.debug(f"the kernel was booted: {sandbox.ready.cold}")
    elif sandbox.ready is not None and sandbox.ready.mounting:
        report.debug(f"the image was mounted: {sandbox.ready.mounting}")
    if quiet or sandbox.isolation != "emulated":
        return
    marker = Path(environment.home(), "cache", "emulation-announced")
    if marker.exists():
        return
    report.note(
        "note: no usable KVM on this machine: the sandbox's processor is emulated, which is slower and "
        "outside QEMU's security guarantee (`msb doctor` tells more; this is said once)"
    )
    try:
        marker.touch()
    except OSError:
        pass  # then it is said again


async def _within_limits(sandbox: Sandbox, attached: Coroutine[object, object, int]) -> int:
    """The exit code of a command whose sandbox may be stopped under it."""
    try:
        code = await attached
    except MicrosandboxError:
        if sandbox.limit_reached() is None:
            raise
    else:
        if sandbox.limit_reached() is None:
            return code
    report.error(f"the sandbox {sandbox.name!r} was stopped: {sandbox.limit_reached()}")
    if not sandbox.ephemeral:
        await sandbox.wait_until_stopped()  # it is writing its disk out
    return report.EXIT_TIMEOUT


async def _attach(
    sandbox: Sandbox,
    command: Sequence[str],
    *,
    env: dict[str, str],
    workdir: str | None,
    user: str | None,
    timeout: float | None,
    stdin: bool,
    terminal: bool,
    keys: DetachKeys | None = None,
) -> int:
    from contextlib import nullcontext

    from microsandbox.execution import Stdin

    from microsandbox_cli.attached import forward, stdin_is_readable

    wanted = stdin and stdin_is_readable()
    tty = None
    if terminal:
        from microsandbox_cli.terminal import here, joined

        tty = here()
    try:
        handle: ExecHandle = await sandbox.exec_stream(
            command[0],
            command[1:],
            cwd=workdir,
            user=user,
            env=env,
            timeout=timeout,
            stdin=Stdin.pipe() if wanted else Stdin.null(),
            tty=tty or False,
        )
    except ExecFailed as failure:
        report.error(str(failure), failure.hint)
        return {
            "not_found": report.EXIT_NOT_FOUND,
            "permission_denied": report.EXIT_NOT_EXECUTABLE,
        }.get(failure.kind, report.EXIT_SANDBOX)
    try:
        with nullcontext() if tty is None else joined(handle, tty, keyboard=wanted):
            # Keys that are not pressed but come from a file are all for the command.
            end = await forward(handle, stdin=wanted, keys=keys if os.isatty(0) else None)
    except OutcomeUnknown as lost:
        raise MicrosandboxError(
            f"the sandbox {sandbox.name!r} ended while {command[0]} was running: {lost}",
            hint="whether the command had finished its work is not known",
            code="outcome_unknown",
        ) from lost
    if end is None:
        report.note(f"note: detached: {command[0]} goes on in the sandbox {sandbox.name!r}")
        return 0
    if end.timed_out:
        report.error(f"{command[0]} was still running after {timeout:g} s and was killed")
        return report.EXIT_TIMEOUT
    if end.oom_killed:
        report.error("the sandbox ran out of memory", "give it more: -m 1G")
    if end.signal is not None:
        return 128 + end.signal
    return end.exit_code or 0
