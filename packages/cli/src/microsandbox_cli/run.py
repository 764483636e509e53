"""`msb run`, `create` and `exec`: from options to a running command and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox import _config, _create, _state
from microsandbox.errors import (
    ConfigError,
    ExecFailed,
    MicrosandboxError,
    NotRunning,
    OutcomeUnknown,
)
from microsandbox_core import env as environment

from microsandbox_cli import report

if TYPE_CHECKING:
    import asyncio
    from typing import Unpack

    from microsandbox import Sandbox
    from microsandbox._create import Pending
    from microsandbox.execution import ExecHandle, Stdin, Terminal
    from microsandbox.sandbox import ExecOptions
    from microsandbox.terminal import DetachKeys

    from microsandbox_cli.network import NetworkOptions


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
    security: str = "default",
    rlimit: Sequence[str] = (),
    no_stdin: bool = False,
    tty: bool = False,
    no_tty: bool = False,
    detach: bool = False,
    detach_keys: str | None = None,
    shell: str | None = None,
    script: Sequence[str] = (),
    script_raw: Sequence[str] = (),
    script_path: Sequence[str] = (),
    tmpfs: Sequence[str] = (),
    volume: Sequence[str] = (),
    stop_signal: str | None = None,
    init: str | None = None,
    init_arg: Sequence[str] = (),
    init_env: Sequence[str] = (),
    root_disk: str | None = None,
    mount_disk: Sequence[str] = (),
    label: Sequence[str] = (),
    replace: bool = False,
    replace_with_grace: str | None = None,
    pull: str = "if-missing",
    quiet: bool = False,
    **network: Unpack[NetworkOptions],
) -> None:
    """Run a command in a new sandbox and exit with its code."""
    seconds = None if timeout is None else _config.parse_duration(timeout, "--timeout")
    config = _configured(
        name, env, workdir, user, memory, cpus, hostname, entrypoint, vmm, require_kvm, cold,
        max_duration, idle_timeout, security, rlimit,
    )  # fmt: skip
    config = _furnished(
        config, shell, script, script_raw, script_path, tmpfs, stop_signal, init, init_arg, init_env,
        root_disk,
    )  # fmt: skip
    config = _networked(_mounted(config, volume, mount_disk), network)
    if command:
        config = config._replace(cmd=tuple(command))  # so that others can see what runs in it
    terminal = _wants_terminal(tty, no_tty, no_stdin or detach)
    # None by default: it is not to go on by mistake.
    keys = None if detach_keys is None else _detach_keys(detach_keys, terminal)
    grace = _config.replacement_grace(name, replace, replace_with_grace)
    ephemeral = name is None
    if detach and name is None:
        # One that is generated later would not have a log.
        name = f"run-{os.urandom(4).hex()}"
    pending = _begin(
        image, config, name, pull=pull, quiet=quiet, attached=not detach, labels=_config.parse_labels(label),
        grace=grace, ephemeral=ephemeral,
    )  # fmt: skip
    # The VM is on its way; what is imported from here on costs nothing.
    from microsandbox_cli.attached import run_in_loop

    async def main() -> int:
        from microsandbox import Sandbox

        from microsandbox_cli.progress import StartProgress

        # Asked for before the guest is up, a command runs the moment that it is. Not one with a terminal,
        # whose size may change until it is joined to ours.
        first = None if detach or terminal else _First(command, seconds, stdin=not no_stdin)
        with StartProgress(quiet=quiet) as progress:
            sandbox = await Sandbox.adopt(pending, progress, None if first is None else first.begin)
        if detach:
            _tell_isolation(sandbox, quiet)
            return await _leave(
                sandbox, lambda: sandbox.command(command, shell=terminal), timeout=seconds, tty=terminal,
                stdin=_keyboard(terminal and not no_stdin),
            )  # fmt: skip
        try:
            _tell_isolation(sandbox, quiet)
            attached = _attach(
                sandbox, sandbox.command(command, shell=terminal), env={}, workdir=None, user=None,
                timeout=seconds, stdin=not no_stdin, terminal=terminal, keys=keys, main=True, first=first,
            )  # fmt: skip
            if config.max_duration is None and config.idle_timeout is None:
                return await attached
            return await within_limits(sandbox, attached)
        finally:
            await end_if_ours(sandbox)

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
    shell: str | None = None,
    script: Sequence[str] = (),
    script_raw: Sequence[str] = (),
    script_path: Sequence[str] = (),
    tmpfs: Sequence[str] = (),
    volume: Sequence[str] = (),
    stop_signal: str | None = None,
    init: str | None = None,
    init_arg: Sequence[str] = (),
    init_env: Sequence[str] = (),
    root_disk: str | None = None,
    mount_disk: Sequence[str] = (),
    security: str = "default",
    rlimit: Sequence[str] = (),
    label: Sequence[str] = (),
    replace: bool = False,
    replace_with_grace: str | None = None,
    pull: str = "if-missing",
    quiet: bool = False,
    **network: Unpack[NetworkOptions],
) -> None:
    """Create a named sandbox, leave it running, print its name."""
    config = _configured(
        name, env, workdir, user, memory, cpus, hostname, entrypoint, vmm, require_kvm, cold,
        max_duration, idle_timeout, security, rlimit,
    )  # fmt: skip
    config = _furnished(
        config, shell, script, script_raw, script_path, tmpfs, stop_signal, init, init_arg, init_env,
        root_disk,
    )  # fmt: skip
    config = _networked(_mounted(config, volume, mount_disk), network)
    pending = _begin(
        image, config, name, pull=pull, quiet=quiet, attached=False, labels=_config.parse_labels(label),
        grace=_config.replacement_grace(name, replace, replace_with_grace),
    )  # fmt: skip
    from microsandbox_cli.attached import run_in_loop

    async def main() -> int:
        from microsandbox import Sandbox

        from microsandbox_cli.progress import StartProgress

        with StartProgress(quiet=quiet) as progress:
            sandbox = await Sandbox.adopt(pending, progress)
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
    rlimit: Sequence[str] = (),
    no_stdin: bool = False,
    tty: bool = False,
    no_tty: bool = False,
    detach: bool = False,
    detach_keys: str | None = None,
) -> None:
    """Run a command in a sandbox and exit with its code. One that is stopped is started for it."""
    terminal = _wants_terminal(tty, no_tty, no_stdin or detach)
    if not command and not terminal:
        report.error("no command was given", f"msb exec {name} -- COMMAND")
        sys.exit(report.EXIT_USAGE)
    seconds = None if timeout is None else _config.parse_duration(timeout, "--timeout")
    variables = _variables(env)
    limits = {limit[0]: limit[1:] for limit in _rlimits(rlimit)}
    from microsandbox_cli.attached import run_in_loop

    keys = _detach_keys(detach_keys, terminal)

    async def main() -> int:
        sandbox = await entered(name, detached=detach)
        if detach:
            # One that was started for it stops with it, as one that runs for a command alone does.
            return await _leave(
                sandbox, lambda: tuple(command) or (sandbox.default_shell,), last=sandbox.ready is not None,
                env=variables, cwd=workdir, user=user, timeout=seconds, tty=terminal, rlimits=limits,
                stdin=_keyboard(terminal and not no_stdin),
            )  # fmt: skip
        try:
            attached = _attach(
                sandbox, tuple(command) or (sandbox.default_shell,), env=variables, workdir=workdir,
                user=user, timeout=seconds, stdin=not no_stdin, terminal=terminal, keys=keys, rlimits=limits,
                main=sandbox.ready is not None,
            )  # fmt: skip
            return await within_limits(sandbox, attached)
        finally:
            # Who has started it stops it; then it is ours, and ends with us whatever becomes of us.
            await end_if_ours(sandbox)

    run_in_loop(main)


async def end_if_ours(sandbox: Sandbox) -> None:
    """The sandbox ends with us if it is ours, and if its command was not left running in it."""
    if not sandbox.owns_lifecycle:
        await sandbox.detach()
    else:
        await sandbox.end()


def _detach_keys(given: str | None, terminal: bool) -> DetachKeys | None:
    """The keys that leave a command; by default those that Docker has, at a terminal."""
    if not terminal and given is None:
        return None
    from microsandbox.terminal import DETACH_KEYS, DetachKeys

    return DetachKeys.parse(DETACH_KEYS if given is None else given)


def _keyboard(wanted: bool) -> Stdin | None:
    """The input of a command that is left at a terminal: that of whoever joins it."""
    if not wanted:
        return None
    from microsandbox.execution import Stdin

    return Stdin.pipe()


async def entered(name: str, *, detached: bool) -> Sandbox:
    """A connection to a sandbox that runs, or the sandbox started by us if it is stopped."""
    from microsandbox import Sandbox, info

    try:
        return await Sandbox.connect(name)
    except NotRunning:
        # What crashed has something to say first, and what is on its way up or down somebody who sees to it.
        if info.inspect(environment.home(), name).info.status is not info.Status.STOPPED:
            raise
    return await Sandbox.start(name, detached=detached)


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
    security: str,
    rlimit: Sequence[str],
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
        security=_config.check_security(security),
        rlimits=_rlimits(rlimit),
    )
    if name is not None:
        _config.check_name(name)
    return config


def _furnished(
    config: _config.SandboxConfig,
    shell: str | None,
    script: Sequence[str],
    script_raw: Sequence[str],
    script_path: Sequence[str],
    tmpfs: Sequence[str],
    stop_signal: str | None,
    init: str | None,
    init_arg: Sequence[str],
    init_env: Sequence[str],
    root_disk: str | None,
) -> _config.SandboxConfig:
    """The settings with those that most sandboxes do without."""
    texts, lists = (shell, stop_signal, init, root_disk), (script, script_raw, script_path, tmpfs)
    if all(text is None for text in texts) and not any((*lists, init_arg, init_env)):
        return config
    from microsandbox import _guest

    return _guest.with_options(
        config,
        shell=shell,
        scripts=_guest.parse_scripts(script, script_raw, script_path, shell),
        tmpfs=_guest.split_tmpfs(tmpfs),
        stop_signal=stop_signal,
        init=_guest.parse_init(init, init_arg, _variables(init_env)),
        root_disk=root_disk,
    )


def _mounted(
    config: _config.SandboxConfig, volume: Sequence[str], mount_disk: Sequence[str]
) -> _config.SandboxConfig:
    """The settings with the files of the host, if there are any."""
    if not volume and not mount_disk:
        return config
    from microsandbox.mounts import check_home, parse_volumes

    config = parse_volumes(config, volume, mount_disk)
    check_home(config.mounts, environment.home())
    return config


def _networked(config: _config.SandboxConfig, options: NetworkOptions) -> _config.SandboxConfig:
    """The settings with the network's, if any is given."""
    if not options:
        return config
    from microsandbox_cli.network import network_of

    return config._replace(network=network_of(options))


def _begin(
    image: str,
    config: _config.SandboxConfig,
    name: str | None,
    *,
    pull: str,
    quiet: bool,
    attached: bool,
    labels: tuple[tuple[str, str], ...],
    grace: float | None,
    ephemeral: bool = False,
) -> Pending:
    home = environment.home()
    from microsandbox_cli.progress import LoadProgress

    with LoadProgress(quiet=quiet) as progress:
        found = _create.resolve_image(home, image, pull=pull, progress=progress)
    if grace is not None and name is not None:
        from microsandbox import _replace

        # While it may still be interrupted.
        _replace.make_room(home, name, grace)
    # From here on a Ctrl-C waits until the event loop can take the sandbox down with it.
    report.hold_signals()
    _state.leave_open()
    if grace is not None and name is not None:
        return _replace.begin(
            home, found, config, shown_image=image, name=name, grace=0.0, attached=attached, labels=labels,
        )  # fmt: skip
    return _create.begin(
        home, found, config, shown_image=image, name=name, attached=attached, ephemeral=ephemeral,
        labels=labels,
    )  # fmt: skip


async def _leave(
    sandbox: Sandbox,
    words: Callable[[], Sequence[str]],
    *,
    last: bool = True,
    **options: Unpack[ExecOptions],
) -> int:
    """Start a command, leave it to itself, and print the name of its sandbox, which ends with it if it is the
    `last` one."""
    from microsandbox.errors import ExecError

    async def end() -> None:
        if last:
            await sandbox.end()
        else:
            await sandbox.detach()

    try:
        command = words()
        handle = await sandbox.exec_stream(command[0], command[1:], main=last, keep=True, **options)
    except ExecFailed as failure:
        await end()
        report.error(str(failure), failure.hint)
        return _EXIT_CODES.get(failure.kind, report.EXIT_SANDBOX)
    except BaseException:
        await end()
        raise
    try:
        await handle.detach(last=last)
    except OutcomeUnknown:
        pass  # it has taken its sandbox along
    except ExecError:
        await end()  # the command was faster
    await sandbox.detach()
    sys.stdout.write(sandbox.name + "\n")
    return 0


_EXIT_CODES = {"not_found": report.EXIT_NOT_FOUND, "permission_denied": report.EXIT_NOT_EXECUTABLE}


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


def _rlimits(given: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    if not given:
        return ()
    from microsandbox._rlimits import parse_rlimits

    return parse_rlimits(given)


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
        marker.touch(mode=0o600)
    except OSError:
        pass  # then it is said again


async def within_limits(sandbox: Sandbox, attached: Coroutine[object, object, int]) -> int:
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
    if sandbox.owns_lifecycle and not sandbox.ephemeral:
        await sandbox.wait_until_stopped()  # it is writing its disk out
    return report.EXIT_TIMEOUT


class _First:
    """The command that a sandbox is there for, asked for before the sandbox is up."""

    def __init__(self, arguments: Sequence[str], timeout: float | None, *, stdin: bool) -> None:
        self._arguments = arguments
        self._timeout = timeout
        self._stdin = stdin
        self.started: asyncio.Task[ExecHandle] | None = None
        """When its guest has been told."""

    def begin(self, sandbox: Sandbox) -> None:
        """Tell the guest; once more if the first one was given up."""
        from microsandbox_cli.loop import asyncio

        self.started = asyncio.ensure_future(self._start(sandbox))
        # Nobody asks for it if the sandbox does not come up.
        self.started.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _start(self, sandbox: Sandbox) -> ExecHandle:
        from microsandbox._forward import stdin_is_readable
        from microsandbox.execution import Stdin

        stdin = Stdin.pipe() if self._stdin and stdin_is_readable() else Stdin.null()
        command = sandbox.command(self._arguments)
        return await sandbox.exec_stream(
            command[0], command[1:], timeout=self._timeout, stdin=stdin, main=True
        )


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
    rlimits: Mapping[str, tuple[int, int]] | None = None,
    main: bool = False,
    first: _First | None = None,
) -> int:
    from microsandbox._forward import stdin_is_readable
    from microsandbox.execution import Stdin

    wanted = stdin and stdin_is_readable()
    tty = None
    if terminal:
        from microsandbox.terminal import here

        tty = here()
    try:
        handle: ExecHandle = await (
            first.started
            if first is not None and first.started is not None
            else sandbox.exec_stream(
                command[0],
                command[1:],
                cwd=workdir,
                user=user,
                env=env,
                timeout=timeout,
                stdin=Stdin.pipe() if wanted else Stdin.null(),
                tty=tty or False,
                rlimits=rlimits,
                main=main,
            )
        )
    except ExecFailed as failure:
        report.error(str(failure), failure.hint)
        return _EXIT_CODES.get(failure.kind, report.EXIT_SANDBOX)
    return await follow(sandbox, handle, command[0], tty=tty, stdin=wanted, keys=keys, timeout=timeout)


async def follow(
    sandbox: Sandbox,
    handle: ExecHandle,
    command: str,
    *,
    tty: Terminal | None,
    stdin: bool,
    keys: DetachKeys | None,
    timeout: float | None = None,
) -> int:
    """Our terminal or streams are the command's until it has ended, or `keys` are pressed; its exit code.
    `tty`: the terminal that it has, if that is to be ours."""
    from contextlib import nullcontext

    from microsandbox._forward import forward

    if tty is not None:
        from microsandbox.terminal import joined
    last = sandbox.owns_lifecycle
    try:
        with nullcontext() if tty is None else joined(handle, tty, keyboard=stdin):
            # Keys that are not pressed but come from a file are all for the command.
            end = await forward(handle, stdin=stdin, keys=keys if os.isatty(0) else None, last=last)
    except OutcomeUnknown as lost:
        raise MicrosandboxError(
            f"the sandbox {sandbox.name!r} ended while {command} was running: {lost}",
            hint="whether the command had finished its work is not known",
            code="outcome_unknown",
        ) from lost
    if end is None:
        sandbox.release()
        report.note(
            f"note: detached: {command} goes on in the sandbox {sandbox.name!r}"
            + (", which ends with it" if last else "")
            + f"; back to it: msb attach {sandbox.name}"
        )
        return 0
    if end.timed_out:
        after = "" if timeout is None else f" after {timeout:g} s"
        report.error(f"{command} was still running{after} and was killed")
        return report.EXIT_TIMEOUT
    if end.oom_killed:
        report.error("the sandbox ran out of memory", "give it more: -m 1G")
    if end.signal is not None:
        return 128 + end.signal
    return end.exit_code or 0
