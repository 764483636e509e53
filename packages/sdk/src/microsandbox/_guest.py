"""What a sandbox has inside beyond its image: scripts, file systems in memory, an init, a stop signal.

Imported only by sandboxes that have one of these.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from microsandbox import _config
from microsandbox._config import DEFAULT_SHELL, SandboxConfig, Tmpfs
from microsandbox.errors import ConfigError

if TYPE_CHECKING:
    from microsandbox_oci import ImageConfig

SCRIPTS_LIMIT = 1 << 20
"""Bytes of all scripts of a sandbox together."""

ITEM_LIMIT = 64
"""Scripts, and as many file systems in memory."""

_NAME_LIMIT = 255  # bytes, as of any file
_PATH_LIMIT = 4095
_TMPFS_MINIMUM = 4096
_ROOT_DISK = (64 << 20, 1 << 40)

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}

_INITS = ("/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/busybox")

RESERVED = ("/proc", "/sys", "/dev", "/.msb")
"""Where agentd mounts what it needs itself."""

MOUNT_LIMIT = 24
"""Directories, files and disks of the host in one sandbox."""


class Init(NamedTuple):
    """An image's init as PID 1: its path, or ``auto`` for one of the usual, arguments, and variables that are
    added to the image's and the sandbox's."""

    path: str = "auto"
    args: Sequence[str] = ()
    env: Mapping[str, str] = {}


def with_options(
    config: SandboxConfig,
    *,
    shell: str | None = None,
    scripts: Mapping[str, str | bytes] | None = None,
    tmpfs: Mapping[str, int | str | None] | None = None,
    stop_signal: int | str | None = None,
    init: str | Init | None = None,
    root_disk: int | str | None = None,
) -> SandboxConfig:
    """`config` with these, checked. Raises `ConfigError` that names the one that is wrong."""
    shell = None if shell is None else check_path(shell, "shell")
    if init is not None and config.security == "restricted":
        raise ConfigError(
            "init: an init needs the privileges that the restricted profile takes away",
            hint="leave out one of the two: --init, or --security restricted",
        )
    mounts = [
        parse_tmpfs(f"{path}:{spec}M" if isinstance(spec, int) else f"{path}:{spec}" if spec else path)
        for path, spec in (tmpfs or {}).items()
    ]
    return config._replace(
        shell=shell,
        scripts=check_scripts((name, content_of(body, shell)) for name, body in (scripts or {}).items()),
        tmpfs=check_tmpfs(mounts),
        stop_signal=None if stop_signal is None else parse_signal(stop_signal),
        init=None if init is None else _checked_init(Init(init) if isinstance(init, str) else init),
        root_disk=None if root_disk is None else parse_root_disk(root_disk),
    )


# ------------------------------------------------------------------------------------------------ scripts


def content_of(body: str | bytes, shell: str | None) -> bytes:
    """A script's bytes: text that names no interpreter is the shell's, all else is taken as it is."""
    if isinstance(body, bytes):
        return body
    return _encoded(body) if body.startswith("#!") else wrapped(body, shell)


def wrapped(body: str, shell: str | None) -> bytes:
    """A snippet as a program of the shell."""
    end = "" if body.endswith("\n") else "\n"
    return _encoded(f"#!{shell or DEFAULT_SHELL}\n{body}{end}")


def unescape(text: str) -> str:
    r"""`text` with ``\n \t \r \\ \" \'`` decoded; any other backslash stays."""
    return re.sub(r"\\([ntr\\\"'])", lambda found: _ESCAPES[found[1]], text)


def parse_scripts(
    snippets: Iterable[str], raw: Iterable[str], paths: Iterable[str], shell: str | None
) -> dict[str, bytes]:
    """The values of ``--script``, ``--script-raw`` and ``--script-path``: contents by name.

    Raises `ConfigError`.
    """
    found: list[tuple[str, bytes]] = []
    for option, items in (("--script", snippets), ("--script-raw", raw)):
        for item in items:
            name, equals, body = item.partition("=")
            if not equals:
                raise ConfigError(
                    f"{option}: {_config._shown(item)} has no body",
                    hint=f"for example: {option} hi='echo hi'",
                )
            found.append((name, wrapped(unescape(body), shell) if option == "--script" else _encoded(body)))
    for item in paths:
        name, colon, path = item.partition(":")
        if not colon or not path:
            raise ConfigError(
                f"--script-path: {_config._shown(item)} names no file",
                hint="for example: --script-path setup:./setup.sh",
            )
        found.append((name, _read(name, path)))
    return {name: content.encode(errors="surrogateescape") for name, content in check_scripts(found)}


def _read(name: str, path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(SCRIPTS_LIMIT + 1)
    except OSError as error:
        raise ConfigError(
            f"script: {_config._shown(name)} cannot be read from {path}: {error.strerror}",
            hint="name a file of this machine that you may read",
        ) from error


def check_scripts(scripts: Iterable[tuple[str, bytes]]) -> tuple[tuple[str, str], ...]:
    """Names and contents; bytes that are not UTF-8 as surrogates. Raises `ConfigError`."""
    found: dict[str, str] = {}
    size = 0
    for name, content in scripts:
        # surrogateescape: a name may come from the command line, in whatever encoding.
        length = len(_encoded(name))
        if not 1 <= length <= _NAME_LIMIT or "/" in name or "\0" in name or name in (".", ".."):
            raise ConfigError(
                f"script: {_config._shown(name)} cannot be the name of a script",
                hint=f"use 1 to {_NAME_LIMIT} bytes without '/', for example: --script hi='echo hi'",
            )
        if name in found:
            raise ConfigError(
                f"script: {_config._shown(name)} is given twice", hint="give every script a name of its own"
            )
        size += len(content)
        found[name] = content.decode(errors="surrogateescape")
    if size > SCRIPTS_LIMIT:
        raise ConfigError(
            f"script: the scripts have more than {SCRIPTS_LIMIT >> 20} MiB together",
            hint="copy large files into the sandbox: msb cp",
        )
    _check_count("script", len(found))
    return tuple(found.items())


# -------------------------------------------------------------------------------------------------- tmpfs


def parse_tmpfs(text: str) -> Tmpfs:
    """A mount from text such as ``/cache``, ``/cache:100M`` or ``/cache:100M,mode=700,ro,noexec``.

    Raises `ConfigError`.
    """
    path, _, options = text.partition(":")
    what = f"tmpfs {path}"
    path = check_path(path, "tmpfs")
    if is_reserved(path):
        raise ConfigError(
            f"{what}: {', '.join(RESERVED)} are the sandbox's own",
            hint="mount it elsewhere: --tmpfs /cache:100M",
        )
    mount = Tmpfs(path)
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if key == "size" or (not equals and option[0].isdigit()):
            size = _config.parse_size(value if equals else option, what)
            if not _TMPFS_MINIMUM <= size < 1 << 50:
                raise ConfigError(f"{what}: {option} is not a size from 4K on", hint="for example: 100M")
            mount = mount._replace(size=size)
        elif key == "mode" and re.fullmatch("0?[0-7]{1,4}", value):
            mount = mount._replace(mode=int(value, 8))
        elif option == "ro":
            mount = mount._replace(read_only=True)
        elif option == "noexec":
            mount = mount._replace(noexec=True)
        elif option not in ("rw", "exec", "nosuid", "nodev"):
            raise ConfigError(
                f"{what}: {_config._shown(option)} is not an option",
                hint="there are a size, mode=OCTAL, ro and noexec: --tmpfs /cache:100M,mode=700",
            )
    return mount


def split_tmpfs(given: Iterable[str]) -> dict[str, str | None]:
    """The values of ``--tmpfs``: what comes after the path, by path. Raises `ConfigError`."""
    found: dict[str, str | None] = {}
    for item in given:
        path, _, options = item.partition(":")
        if path in found:
            raise ConfigError(f"tmpfs: {path} is given twice", hint="give every mount its own path")
        found[path] = options or None
    return found


def check_tmpfs(mounts: Iterable[Tmpfs]) -> tuple[Tmpfs, ...]:
    """Mounts in an order in which none hides another. Raises `ConfigError`."""
    found = sorted(mounts, key=lambda mount: mount.path)
    for mount, following in pairwise(found):
        if mount.path == following.path:
            raise ConfigError(f"tmpfs: {mount.path} is given twice", hint="give every mount its own path")
    _check_count("tmpfs", len(found))
    return tuple(found)


# ------------------------------------------------------------------------------------------ init, the rest


def parse_signal(value: int | str) -> int:
    """A signal from a number or a name: ``15``, ``TERM``, ``SIGRTMIN+3``. Raises `ConfigError`."""
    number = _signal(str(value)) if not isinstance(value, bool) else None
    if number is None or number in (signal.SIGSTOP, signal.SIGCONT):
        raise ConfigError(
            f"stop_signal: {_config._shown(str(value))} is not a signal that ends a process",
            hint="for example: SIGTERM, SIGINT, SIGRTMIN+3, 15",
        )
    return number


def _signal(text: str) -> int | None:
    if re.fullmatch("[0-9]{1,2}", text):
        return int(text) if 1 <= int(text) <= 64 else None
    name = text.upper().removeprefix("SIG")
    if found := re.fullmatch(r"RTMIN(?:\+([0-9]{1,2}))?", name):
        number = 34 + int(found[1] or 0)
    elif found := re.fullmatch(r"RTMAX(?:-([0-9]{1,2}))?", name):
        number = 64 - int(found[1] or 0)
    else:
        return getattr(signal.Signals, f"SIG{name}", None)
    return number if 34 <= number <= 64 else None


def parse_init(path: str | None, args: Sequence[str], env: Mapping[str, str]) -> Init | None:
    """The values of ``--init``, ``--init-arg`` and ``--init-env``. Raises `ConfigError`."""
    if path is None and (args or env):
        raise ConfigError(
            f"init: {'--init-arg' if args else '--init-env'} is given without --init",
            hint="name the init as well: --init auto",
        )
    return None if path is None else Init(path, args, env)


def _checked_init(init: Init) -> tuple[str | None, tuple[str, ...], tuple[tuple[str, str], ...]]:
    path = None if init.path == "auto" else check_path(init.path, "init")
    if any("\0" in argument for argument in init.args):
        raise ConfigError("init: an argument contains a NUL byte", hint="arguments end at a NUL byte")
    return path, tuple(init.args), _config.check_env(init.env)


def is_init(config: SandboxConfig, program: str) -> bool:
    """Whether a program is what runs as PID 1 already: an image made for an init names it as its command."""
    return config.init is not None and program in (config.init[0], *_INITS[:-1])


def parse_root_disk(value: int | str) -> int:
    """Bytes of the root disk, from an int (MiB) or text such as ``16G``. Raises `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"root_disk: expected int (MiB) or str, not {type(value).__name__}")
    size = value << 20 if isinstance(value, int) else _config.parse_size(value, "root_disk")
    least, most = _ROOT_DISK
    if not least <= size <= most:
        raise ConfigError(
            f"root_disk: {value} is not between 64M and 1T", hint="for example: --root-disk 16G"
        )
    return size


def check_path(path: str, what: str) -> str:
    """An absolute path that names something, without needless slashes. Raises `ConfigError`."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    if path.startswith("/") and not names:
        raise ConfigError(f"{what}: '/' is the sandbox's root itself", hint="name something below it")
    if not path.startswith("/") or ".." in names or "\0" in path:
        raise ConfigError(
            f"{what}: {_config._shown(path)} is not an absolute path in the sandbox",
            hint="begin it with '/', and use no '..'",
        )
    if len(_encoded(path)) > _PATH_LIMIT:
        raise ConfigError(f"{what}: a path of more than {_PATH_LIMIT} bytes", hint="use a shorter one")
    return "/" + "/".join(names)


def is_reserved(path: str) -> bool:
    """Whether a path is one of `RESERVED`, or lies below one."""
    return any(path == taken or path.startswith(taken + "/") for taken in RESERVED)


def _check_count(what: str, count: int) -> None:
    if count > ITEM_LIMIT:
        raise ConfigError(f"{what}: {count} are too many", hint=f"give at most {ITEM_LIMIT}")


def _encoded(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"script: {_config._shown(text)} is neither text nor bytes of a command line",
            hint="give what is not UTF-8 as bytes",
        ) from error


# ------------------------------------------------------------------------------------- for the supervisor


def configure_parameters(config: SandboxConfig, image: ImageConfig) -> dict[str, Any]:
    """What `configure` of the agent channel is told beyond what every sandbox is."""
    asked: dict[str, Any] = {}
    workdir = config.workdir or image.working_dir
    if workdir.startswith("/") and ".." not in workdir.split("/") and workdir != "/":
        asked["workdir"] = _encoded(workdir)
    if config.tmpfs:
        asked["tmpfs"] = [
            {**mount._asdict(), "path": _encoded(mount.path)} for mount in map(Tmpfs._make, config.tmpfs)
        ]
    if config.scripts:
        asked["scripts"] = [[_encoded(name), _encoded(content)] for name, content in config.scripts]
    stop_signal = config.stop_signal or _signal(image.stop_signal)
    if stop_signal is not None and (config.stop_signal or stop_signal != signal.SIGTERM):
        asked["stop_signal"] = int(stop_signal)
    return asked


def init_parameters(config: SandboxConfig, image: ImageConfig) -> dict[str, Any] | None:
    """What `init` of the agent channel is told; None if the image's init is not wanted."""
    if config.init is None:
        return None
    path, args, added = config.init
    env = {"PATH": _config.DEFAULT_PATH, "HOME": "/", "TERM": "linux", "container": "microsandbox"}
    env.update(pair.partition("=")[::2] for pair in image.env)
    env.update(config.env)
    env.update(added)
    return {
        "path": None if path is None else _encoded(path),
        "args": [_encoded(argument) for argument in args],
        "env": [_encoded(f"{name}={value}") for name, value in env.items()],
    }
