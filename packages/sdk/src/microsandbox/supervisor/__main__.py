"""Reads the configuration and supervises; see `_supervise`."""

from __future__ import annotations

import gc
import os
import sys


def main(lifeline_descriptor: int) -> int:
    """Supervise for the creator at the other end of this lifeline; the process's exit code.

    The creator may start it before it knows what is to be supervised, so everything is imported first.
    """
    # Whatever it makes is its user's alone, whatever the creator's habits are.
    os.umask(0o077)
    # Nothing that is imported is garbage; looking for some takes a twelfth of the time.
    gc.disable()
    try:
        import socket

        from microsandbox._state import leave_open
        from microsandbox.supervisor._supervise import Supervision, read_launch
    except BaseException:
        # Told where somebody will look for it, once it is known where that is.
        _receive_log(lifeline_descriptor)
        raise
    gc.freeze()
    gc.enable()
    lifeline = socket.socket(fileno=lifeline_descriptor)
    lifeline.set_inheritable(False)
    try:
        _, descriptors, _, _ = socket.recv_fds(lifeline, 64, 4, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return 0
    if len(descriptors) != 4:
        return 0  # the creator has ended, or has found that there is nothing to supervise
    leave_open()
    config, log, lock, image_pin = descriptors
    _log_to(log)
    with os.fdopen(config, "rb") as file:
        launch = read_launch(file.read())
    launch = launch._replace(lock=lock, lifeline=lifeline.detach(), image_pin=image_pin)
    return Supervision(launch).run()


def _receive_log(lifeline: int) -> None:
    import socket

    with socket.socket(fileno=lifeline) as connection:
        _, descriptors, _, _ = socket.recv_fds(connection, 64, 4)
        if len(descriptors) == 4:
            _log_to(descriptors[1])


def _log_to(descriptor: int) -> None:
    """Make it standard output and error."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


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
