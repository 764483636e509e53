"""A file that the VMM opens for writing without need: it is handed a read-only descriptor instead.

The VMM starts under a seccomp filter that stops it where it opens something with `O_RDWR` and asks us
(seccomp_unotify(2)). When it is the file in question, a descriptor of ours becomes the result of the call.
Then nobody listens any more, and such calls fail with ENOSYS.

This is no confinement: it takes care of what an honest VMM ends up holding.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import os
import select
import signal
import struct
import time
from typing import NamedTuple

from microsandbox_core.errors import TemplateFailed

DEADLINE = 30.0
"""Seconds in which the VMM has to open the file. Nobody waits that long for a machine from a template."""

_SYS_SECCOMP = 317  # arch/x86/entry/syscalls/syscall_64.tbl
_SYS_OPEN = 2
_SYS_OPENAT = 257
_X32 = 0x4000_0000  # __X32_SYSCALL_BIT, asm/unistd.h

_AUDIT_ARCH_X86_64 = 0xC000_003E  # linux/audit.h
_SET_MODE_FILTER = 1  # linux/seccomp.h, from here on
_NEW_LISTENER = 1 << 3
_USER_NOTIF = 0x7FC0_0000
_ALLOW = 0x7FFF_0000
_CONTINUE = 1
_ADDFD_SEND = 1 << 1
_IOCTL_RECV = 0xC050_2100
_IOCTL_SEND = 0xC018_2101
_IOCTL_ID_VALID = 0x4008_2102
_IOCTL_ADDFD = 0x4018_2103

# id, pid, flags; of struct seccomp_data: nr, arch, instruction pointer, six arguments
_NOTIFICATION = struct.Struct("=QII iIQ6Q")
_RESPONSE = struct.Struct("=QqiI")  # id, value, error, flags
_ADDFD = struct.Struct("=QIIII")  # id, flags, our descriptor, its number there, its flags there


def _filter() -> bytes:
    """The program: struct sock_filter (linux/filter.h) as code, jump if true, jump if false, value."""
    load, mask, equal, jump, result = 0x20, 0x54, 0x15, 0x05, 0x06
    program = (
        (load, 0, 0, 4),  # the architecture
        (equal, 0, 10, _AUDIT_ARCH_X86_64),
        (load, 0, 0, 0),  # the number of the call
        (mask, 0, 0, 0xFFFF_FFFF & ~_X32),
        (equal, 0, 2, _SYS_OPENAT),
        (load, 0, 0, 32),  # its third argument
        (jump, 0, 0, 2),
        (equal, 0, 4, _SYS_OPEN),
        (load, 0, 0, 24),  # its second argument
        # QEMU 7.2 opens memory files without O_CLOEXEC; that another one may not must not matter.
        (mask, 0, 0, 0xFFFF_FFFF & ~os.O_CLOEXEC),
        (equal, 0, 1, os.O_RDWR),
        (result, 0, 0, _USER_NOTIF),
        (result, 0, 0, _ALLOW),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


# PyDLL and not CDLL: it keeps the interpreter's lock. A thread that lets go of it around each call gets it
# back only after milliseconds while the main thread is busy, and the VMM is stopped all the while: 10 ms
# instead of 5 on a loaded machine. Nothing that is called here waits for anybody but the stopped VMM.
_libc = ctypes.PyDLL(None, use_errno=True)


class Offer(NamedTuple):
    """When the VMM opens `name` with `O_RDWR`, within that many seconds, it gets `descriptor` as it is."""

    name: str
    descriptor: int
    seconds: float = DEADLINE


def install() -> int:
    """Put the calling thread under the filter, for good, and return the descriptor that listens.

    Needs `PR_SET_NO_NEW_PRIVS`. Raises `OSError`: ENOSYS or EINVAL where the kernel knows no listeners
    (before Linux 5.0), EBUSY if there is one already, as in some containers.
    """
    if os.uname().machine != "x86_64":
        raise OSError(errno.ENOSYS, "seccomp")
    program = _filter()
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    numbers = (ctypes.c_long(number) for number in (_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER))
    listener = _libc.syscall(*numbers, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


class Handover:
    """Waits in a thread of its own for a VMM to open the offered file, and hands it over.

    QEMU needs 15 ms and more to come to that point, five times as long as to be started, and whoever
    started it has better things to do. The thread ends with the hand-over, the VMM's end, or the deadline.
    """

    def __init__(self, listener: int, pid: int, pidfd: int, offer: Offer) -> None:
        """`pid` has executed its program; `pidfd` stays open until `join`. Takes over `listener`.

        Raises `TemplateFailed` where this host cannot do it.
        """
        self._listener = listener
        self._pidfd = pidfd
        self._name = os.fsencode(offer.name) + b"\0"
        self._end = time.monotonic() + offer.seconds
        self._descriptor = self._memory = -1
        try:
            self._descriptor = os.dup(offer.descriptor)
            self._probe()
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            # Not `threading`, whose import takes longer than all that happens here.
            self._running = _thread.allocate_lock()
            self._running.acquire()
            _thread.start_new_thread(self._run, ())
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._close()
            raise TemplateFailed(f"the VMM cannot be handed a read-only file here: {error}") from error

    def join(self) -> None:
        """Wait for the thread's end, which follows the VMM's."""
        with self._running:
            pass

    def _probe(self) -> None:
        """Whether descriptors can be sent (Linux 5.14): asked before the VMM is stopped by its call."""
        try:
            self._send(0)
        except OSError as error:
            if error.errno != errno.ENOENT:  # nothing is waiting for that answer
                raise

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        try:
            while self._called() and not self._handed_over():
                pass
        except OSError:
            pass  # closed all the same: the VMM's call fails, which it tells before it ends
        finally:
            self._close()
            self._running.release()

    def _called(self) -> bool:
        """Wait for a call. False if none will come any more: at the VMM's end, or after the deadline."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        left = max(0.0, self._end - time.monotonic())
        return (self._listener, select.POLLIN) in poll.poll(left * 1000)

    def _handed_over(self) -> bool:
        """Answer one call; whether it was the one that was waited for."""
        try:
            call = _ioctl(self._listener, _IOCTL_RECV, bytes(_NOTIFICATION.size))
            identifier, _, _, number, _, _, *arguments = _NOTIFICATION.unpack(call)
            offered = self._is_offered(arguments[0 if number & ~_X32 == _SYS_OPEN else 1])
            # What was read was the caller's only if it still waits: seccomp_unotify(2).
            _ioctl(self._listener, _IOCTL_ID_VALID, struct.pack("=Q", identifier))
            if offered:
                self._send(identifier)
            else:
                _ioctl(self._listener, _IOCTL_SEND, _RESPONSE.pack(identifier, 0, 0, _CONTINUE))
        except OSError as error:
            if error.errno != errno.ENOENT:  # a signal took the caller out of its call, or it ended
                raise
            return False
        return offered

    def _is_offered(self, address: int) -> bool:
        found = ctypes.create_string_buffer(len(self._name))
        size, offset = ctypes.c_size_t(len(self._name)), ctypes.c_uint64(address)
        # Less is read at the end of the memory there, and nothing where there is none.
        return bool(_libc.pread(self._memory, found, size, offset) == size.value and found.raw == self._name)

    def _send(self, identifier: int) -> None:
        request = _ADDFD.pack(identifier, _ADDFD_SEND, self._descriptor, 0, os.O_CLOEXEC)
        _ioctl(self._listener, _IOCTL_ADDFD, request)

    def _close(self) -> None:
        for descriptor in (self._listener, self._descriptor, self._memory):
            if descriptor >= 0:
                os.close(descriptor)


def _ioctl(descriptor: int, request: int, data: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(data, len(data))
    if _libc.ioctl(descriptor, ctypes.c_ulong(request), buffer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw
