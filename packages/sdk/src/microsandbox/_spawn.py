"""The supervisor's process, from before it knows what it is to supervise.

The first thing that a start does: nothing is imported here that an interpreter has not loaded anyway, except
for the module under `socket`.
"""

from __future__ import annotations

import _socket
import os
import sys

_MODULE = "microsandbox.supervisor"
_PACKAGES = ("microsandbox", "microsandbox_core", "microsandbox_net", "microsandbox_fs", "msgpack")
# What the `site` module and `-m` do takes a fifth of an interpreter's start.
_BOOTSTRAP = (
    "import sys; sys.path += sys.argv[3:]\n"
    "from microsandbox.supervisor.__main__ import run; run(int(sys.argv[2]))"
)

_prepared: Process | None = None


class Process:
    """A supervisor that waits for what it is to supervise: its id, and our end of the lifeline."""

    __slots__ = ("lifeline", "pid")

    def __init__(self, pid: int, lifeline: int) -> None:
        self.pid = pid
        self.lifeline = lifeline

    def discard(self) -> None:
        """Let go of a supervisor that was never told anything; its end of the lifeline ends it."""
        os.close(self.lifeline)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the program around us collects its children by itself


def prepare() -> None:
    """Start a supervisor for the next `launch`, so that its interpreter is up by then.

    For a program that is about to launch and then ends: one that is not used goes with this process.
    Does nothing when it cannot be started; `launch` then says why.
    """
    global _prepared
    if _prepared is None:
        try:
            _prepared = spawn()
        except OSError:
            pass


def take_prepared() -> Process | None:
    """The supervisor that `prepare` started, once."""
    global _prepared
    process, _prepared = _prepared, None
    return process


def spawn() -> Process:
    """Run the supervisor module in its own session, with its end of the lifeline and nothing else.

    Raises `OSError`.
    """
    # posix_spawn() and not subprocess: it is safe in a program with threads, needs no import, and
    # everything that Python opens is closed by exec() unless it is handed over by an action here.
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    lifeline, spare = theirs.fileno(), theirs.fileno() + 1
    try:
        # dup2() onto itself would keep close-on-exec set; over a spare number it is cleared.
        pid = os.posix_spawn(
            sys.executable,
            _command(lifeline),
            _environment(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                (os.POSIX_SPAWN_DUP2, lifeline, spare),
                (os.POSIX_SPAWN_DUP2, spare, lifeline),
                (os.POSIX_SPAWN_CLOSE, spare),
            ],
            setsid=True,
            setsigdef=[1, 2, 3, 10, 13, 15],
            setsigmask=[],
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Process(pid, ours.detach())


def _command(lifeline: int) -> list[str]:
    places = [_place(package) for package in _PACKAGES]
    if None in places:
        # Installed in a way that only `site` knows, or in an archive.
        return [sys.executable, "-I", "-m", _MODULE, str(lifeline)]
    # Only where the packages are, and behind Python's own modules: beside the creator's program there may
    # be a file with the name of one of those.
    found = [place for place in dict.fromkeys(places) if place is not None]
    return [sys.executable, "-IS", "-c", _BOOTSTRAP, _MODULE, str(lifeline), *found]


def _place(package: str) -> str | None:
    """The directory of the module path that has this package."""
    for place in sys.path:
        if os.path.isabs(place) and os.path.isfile(f"{place}/{package}/__init__.py"):  # noqa: PTH113, PTH117
            return place
    return None


def _environment() -> dict[str, str]:
    """The few variables a supervisor reads. Nothing else of the caller's: it may hold secrets."""
    ours = ("MSB_QEMU", "MSB_KERNEL", "MSB_LIBKRUNFW", "MSB_CGROUP", "MSB_CONFINE", "MSB_VIRTIOFS")
    wanted = ("PATH", *ours, "LANG", "LC_ALL", "TMPDIR")
    return {name: os.environ[name] for name in wanted if name in os.environ}
