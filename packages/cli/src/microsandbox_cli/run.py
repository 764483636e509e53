"""`msb run`, `create` and `exec`: from options to a running command and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from microsandbox import _config, _create
from microsandbox.errors import ConfigError, ExecFailed, MicrosandboxError, OutcomeUnknown
from microsandbox_core import env as environment

from microsandbox_cli import report

if TYPE_CHECKING:
    from microsandbox import Sandbox
    from microsandbox._create import Pending
    from microsandbox.execution import ExecHandle


class Options(NamedTuple):
    """The options of run and create that describe the sandbox."""

    name: str | None
    env: Sequence[str]
    workdir: str | None
    user: str | None
    memory: str | None
    cpus: int | None
    hostname: str | None
    entrypoint: str | None
    vmm: str
    require_kvm: bool
    cold: bool
    quiet: bool


def run_new(
    image: str, command: Sequence[str], options: Options, *, timeout: str | None, stdin: bool
) -> None:
    """Run a command in a new sandbox and exit with its code."""
    seconds = None if timeout is None else _config.parse_duration(timeout, "--timeout")
    pending = _begin(image, options, attached=True, ephemeral=options.name is None)
    # The VM is on its way; what is imported from here on costs nothing.
    from microsandbox_cli.attached import run_in_loop

    async def main() -> int:
        from microsandbox import Sandbox

        sandbox = await Sandbox.adopt(pending)
        async with sandbox:
            _tell_isolation(sandbox, options.quiet)
            return await _attach(
                sandbox, sandbox.command(command), env={}, workdir=None, user=None,
                timeout=seconds, stdin=stdin,
            )  # fmt: skip

    run_in_loop(main)


def create_detached(image: str, options: Options) -> None:
    """Create a named sandbox, leave it running, print its name."""
    pending = _begin(image, options, attached=False, ephemeral=False)
    from microsandbox_cli.attached import run_in_loop

    async def main() -> int:
        from microsandbox import Sandbox

        sandbox = await Sandbox.adopt(pending)
        _tell_isolation(sandbox, options.quiet)
        await sandbox.detach()
        sys.stdout.write(sandbox.name + "\n")
        return 0

    run_in_loop(main)


def exec_in(
    name: str,
    command: Sequence[str],
    *,
    env: Sequence[str],
    workdir: str | None,
    user: str | None,
    timeout: str | None,
    stdin: bool,
) -> None:
    """Run a command in a running sandbox and exit with its code."""
    if not command:
        report.error("no command was given", f"msb exec {name} -- COMMAND")
        sys.exit(report.EXIT_USAGE)
    seconds = None if timeout is None else _config.parse_duration(timeout, "--timeout")
    variables = _variables(env)
    from microsandbox_cli.attached import run_in_loop

    async def main() -> int:
        from microsandbox import Sandbox

        sandbox = await Sandbox.get(name)
        try:
            return await _attach(
                sandbox, tuple(command), env=variables, workdir=workdir, user=user,
                timeout=seconds, stdin=stdin,
            )  # fmt: skip
        finally:
            await sandbox.detach()

    run_in_loop(main)


def _begin(image: str, options: Options, *, attached: bool, ephemeral: bool) -> Pending:
    home = environment.home()
    config = _config.SandboxConfig(
        cpus=_config.parse_cpus(_config.DEFAULT_CPUS if options.cpus is None else options.cpus),
        memory_mib=_config.parse_memory(
            _config.DEFAULT_MEMORY_MIB if options.memory is None else options.memory
        ),
        hostname=None if options.hostname is None else _config.check_hostname(options.hostname),
        env=_config.check_env(_variables(options.env)),
        workdir=options.workdir,
        user=options.user,
        entrypoint=None if options.entrypoint is None else _entrypoint(options.entrypoint),
        vmm=options.vmm,
        require_kvm=options.require_kvm,
        cold=options.cold,
    )
    if options.name is not None:
        _config.check_name(options.name)
    from microsandbox_cli.progress import LoadProgress

    with LoadProgress(quiet=options.quiet) as progress:
        found = _create.resolve_image(home, image, progress=progress)
    # From here on a Ctrl-C waits until the event loop can take the sandbox down with it.
    report.hold_signals()
    return _create.begin(
        home, found, config, shown_image=image, name=options.name, attached=attached, ephemeral=ephemeral
    )


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


async def _attach(
    sandbox: Sandbox,
    command: Sequence[str],
    *,
    env: dict[str, str],
    workdir: str | None,
    user: str | None,
    timeout: float | None,
    stdin: bool,
) -> int:
    from microsandbox.execution import Stdin

    from microsandbox_cli.attached import forward, stdin_is_readable

    wanted = stdin and stdin_is_readable()
    try:
        handle: ExecHandle = await sandbox.exec_stream(
            command[0],
            command[1:],
            cwd=workdir,
            user=user,
            env=env,
            timeout=timeout,
            stdin=Stdin.pipe() if wanted else Stdin.null(),
        )
    except ExecFailed as failure:
        report.error(str(failure), failure.hint)
        return {
            "not_found": report.EXIT_NOT_FOUND,
            "permission_denied": report.EXIT_NOT_EXECUTABLE,
        }.get(failure.kind, report.EXIT_SANDBOX)
    try:
        end = await forward(handle, stdin=wanted)
    except OutcomeUnknown as lost:
        raise MicrosandboxError(
            f"the sandbox {sandbox.name!r} ended while {command[0]} was running: {lost}",
            hint="whether the command had finished its work is not known",
            code="outcome_unknown",
        ) from lost
    if end.timed_out:
        report.error(f"{command[0]} was still running after {timeout:g} s and was killed")
        return report.EXIT_TIMEOUT
    if end.oom_killed:
        report.error("the sandbox ran out of memory", "give it more: -m 1G")
    if end.signal is not None:
        return 128 + end.signal
    return end.exit_code or 0
