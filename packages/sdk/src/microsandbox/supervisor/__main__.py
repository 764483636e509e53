"""Reads the configuration and supervises; see `_supervise`."""

from __future__ import annotations

import gc
import os
import sys


def main(lifeline_descriptor: int) -> int:
    """Supervise for the creator at the other end of this lifeline; the process's exit code.

    The creator may start it before it knows what is to be supervised, so everything is imported first.
    """
    # Nothing that is imported is garbage; looking for some takes a twelfth of the time.
    gc.disable()
    try:
        from microsandbox._slim import import_pathlib

        import_pathlib()
        import socket

        from microsandbox._state import leave_open
        from microsandbox.supervisor._supervise import Supervision, read_launch
    except BaseException:
        # Told where somebody will look for it, once it is known where that is.
        _receive_log(lifeline_descriptor)
        raise
    # Whatever it makes is its user's alone, whatever the creator's habits are. Not before this: who shares
    # the packages with others, and compiles them first, does it for all.
    os.umask(0o077)
    gc.freeze()
    gc.enable()
    lifeline = socket.socket(fileno=lifeline_descriptor)
    lifeline.set_inheritable(False)
    try:
        _, descriptors, _, _ = socket.recv_fds(lifeline, 64, 5, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return 0
    if len(descriptors) != 5:
        return 0  # the creator has ended, or has found that there is nothing to supervise
    leave_open()
    config, log, lock, image_pin, client = descriptors
    _log_to(log)
    with os.fdopen(config, "rb") as file:
        launch = read_launch(file.read())
    launch = launch._replace(lock=lock, lifeline=lifeline.detach(), image_pin=image_pin, client=client)
    return Supervision(launch).run()


def _receive_log(lifeline: int) -> None:
    import socket

    with socket.socket(fileno=lifeline) as connection:
        _, descriptors, _, _ = socket.recv_fds(connection, 64, 5)
        if len(descriptors) == 5:
            _log_to(descriptors[1])


_LOG = 2  # the descriptor
_LOG_LIMIT = 64 << 10
"""Bytes of the supervisor's log, after which it begins anew: nothing that goes on and on can fill a disk."""


class _BoundedLog:
    """Standard error, when that is the log. Nobody would hear of it if it cannot be written."""

    def __init__(self) -> None:
        self._written = 0

    def write(self, text: str) -> int:
        data = text.encode(errors="backslashreplace")[-_LOG_LIMIT:]
        try:
            if self._written + len(data) > _LOG_LIMIT:
                os.ftruncate(_LOG, 0)
                self._written = 0
            self._written += os.pwrite(_LOG, data, self._written)
        except OSError:
            pass
        return len(text)

    def flush(self) -> None:
        pass


def _log_to(descriptor: int) -> None:
    """Make it standard output and error."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stderr = _BoundedLog()


def run(lifeline_descriptor: int) -> None:
    """`main`, and the end of the process."""
    try:
        code = main(lifeline_descriptor)
    finally:
        sys.stderr.flush()
    # Not sys.exit(): the creator waits for the end of this process, and there is nothing to tidy up.
    os._exit(code)


if __name__ == "__main__":
    run(int(sys.argv[1]))
