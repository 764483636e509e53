"""What the VMM can reach, should its guest take it over: what it was handed, and next to nothing else.

Two walls around the process that is about to become the VMM, for ever. Landlock (landlock(7),
include/uapi/linux/landlock.h) lets it open its own program's files and the kernel; it can neither make nor
remove names nor use TCP, and, as far as the host's kernel knows how, neither reach abstract sockets nor
signal other processes. A seccomp filter refuses the system calls that lead out in other ways, above all those
that connect sockets and those by which kernels are broken. QEMU's own filter (`-sandbox`) comes on top, with
what only QEMU can know, such as when it starts no more programs.

What the process inherits stays open, and what it holds in memory (memfd_create(2)) it can open anew.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET = 444  # the same number on all architectures
_ADD_RULE = 445
_RESTRICT_SELF = 446
_VERSION = 1 << 0
_PATH_BENEATH = 1

# LANDLOCK_ACCESS_FS_*
_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_READ = _READ_FILE | _READ_DIR
_RUN = _READ | _EXECUTE
_USE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV

_RULESET = struct.Struct("=QQQ")  # struct landlock_ruleset_attr: files, TCP, scopes
_BENEATH = struct.Struct("=Qi")  # struct landlock_path_beneath_attr, packed

# Where systems keep programs, their libraries and data, which are everybody's to read.
_SYSTEM = (
    "/bin", "/lib", "/lib64",
    "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/share", "/usr/local/bin", "/usr/local/lib",
    "/nix/store", "/gnu/store",
)  # fmt: skip
_READABLE = ("/etc/ld.so.cache", "/etc/ld.so.preload", "/dev/urandom", "/sys/devices/system")
_DEVICES = ("/dev/kvm", "/dev/null")
# What a program finds from where it is: its libraries, and QEMU its modules and firmware.
_BESIDE = ("lib", "lib64", "libexec", "share/qemu", "share/seabios", "pc-bios")

_SYS_SECCOMP = 317  # arch/x86/entry/syscalls/syscall_64.tbl, as all that follow
_SET_MODE_FILTER = 1  # linux/seccomp.h
_ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000
_AUDIT_ARCH_X86_64 = 0xC000_003E  # linux/audit.h
_X32 = 0x4000_0000  # __X32_SYSCALL_BIT, asm/unistd.h
_CLONE = 56
_CLONE3 = 435
# CLONE_NEWTIME has the place of a signal number in clone(2), and is for unshare(2) and clone3(2) alone.
_NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_REFUSED = {
    # Sockets: all that a VMM talks over it was handed.
    "connect": 42, "bind": 49, "listen": 50,
    # Other processes.
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438,
    "process_madvise": 440,
    # Keys.
    "add_key": 248, "request_key": 249, "keyctl": 250,
    # Parts of the kernel that are much used to break it.
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    # Namespaces and mounts.
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "open_by_handle_at": 304,
    # The machine.
    "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163, "syslog": 103, "iopl": 172, "ioperm": 173,
}  # fmt: skip
"""By name, for whoever reads this: the number of a system call that fails with EPERM."""

OFF = "off"
"""The value of MSB_CONFINE with which nothing is confined."""

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The version of Landlock that this kernel has switched on; 0: none."""
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION))


def confine(program: str, readable: Sequence[str]) -> None:
    """Confine the calling thread, and what it executes, to `program` and the files `readable`.

    Where the kernel has no Landlock it can still open what its user can; see `version`. Needs
    `PR_SET_NO_NEW_PRIVS`. Raises `OSError`.
    """
    known = version()
    if known:
        _restrict(known, program, readable)
    if os.uname().machine == "x86_64":
        _refuse()


def _restrict(known: int, program: str, readable: Sequence[str]) -> None:
    handled = (1 << (13 if known == 1 else 14 if known == 2 else 15 if known < 5 else 16)) - 1
    attributes = _RULESET.pack(handled, 3 if known >= 4 else 0, 3 if known >= 6 else 0)
    size = 8 if known < 4 else 16 if known < 6 else 24
    rules = _call(_CREATE_RULESET, attributes, size, 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        for path, access in _paths(program, readable):
            # What is not there cannot be opened, and what the user cannot open the VMM cannot either.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    directory = stat.S_ISDIR(os.fstat(opened).st_mode)
                    _allow(rules, opened, access & handled & (-1 if directory else _OF_FILES))
                finally:
                    os.close(opened)
        if _call(_RESTRICT_SELF, rules, 0) < 0:
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(rules)


def _paths(program: str, readable: Sequence[str]) -> Iterator[tuple[str, int]]:
    for path in _SYSTEM:
        yield path, _RUN
    for path in (*_READABLE, *readable):
        yield path, _READ
    for path in _DEVICES:
        yield path, _USE
    for found in dict.fromkeys((program, os.path.realpath(program))):
        yield found, _RUN
        directory = Path(found).parent
        for beside in _BESIDE:
            yield f"{directory}/{beside}", _RUN
            yield f"{directory.parent}/{beside}", _RUN


def _allow(rules: int, descriptor: int, access: int) -> None:
    if _call(_ADD_RULE, rules, _PATH_BENEATH, _BENEATH.pack(access, descriptor), 0) < 0:
        raise OSError(ctypes.get_errno(), "landlock_add_rule")


def _program() -> bytes:
    """The filter: struct sock_filter (linux/filter.h) as code, jump if true, jump if false, value."""
    load, equal, jump_set, greater, result = 0x20, 0x15, 0x45, 0x35, 0x06
    refused = sorted(_REFUSED.values())
    # After the numbers come: allow, the flags of clone (2), EPERM, ENOSYS.
    allow = len(refused)
    clone, refuse, unknown = allow + 1, allow + 3, allow + 4
    head = (
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, _AUDIT_ARCH_X86_64),
        (result, 0, 0, _ERRNO | errno.ENOSYS),  # 32-bit calls have other numbers
        (load, 0, 0, 0),  # the number of the call
        (greater, unknown + 2, 0, _X32),
        (equal, clone + 1, 0, _CLONE),
        # Its flags are in memory, where no filter can read them; C libraries then use clone.
        (equal, unknown, 0, _CLONE3),
    )
    tail = (
        (result, 0, 0, _ALLOW),
        (load, 0, 0, 16),  # the first argument
        (jump_set, 0, 2, _NEW_NAMESPACES),
        (result, 0, 0, _ERRNO | errno.EPERM),
        (result, 0, 0, _ERRNO | errno.ENOSYS),
        (result, 0, 0, _ALLOW),
    )
    numbers = tuple((equal, refuse - index - 1, 0, number) for index, number in enumerate(refused))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in (*head, *numbers, *tail))


def _refuse() -> None:
    program = _program()
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    if _call(_SYS_SECCOMP, _SET_MODE_FILTER, 0, header) < 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    return int(_libc.syscall(ctypes.c_long(number), *words))
