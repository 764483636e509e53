"""A host directory as a FUSE server: the Rust broker with typed options."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from microsandbox_fs import _native


class Ownership(StrEnum):
    """How owners and modes of the host and those of the guest meet."""

    VIRTUAL = "virtual"
    """What the guest sets is kept beside the files, and never reaches the host's owners and modes."""
    PASSTHROUGH = "passthrough"
    """The host's are shown; permissions are set on the host without set-id bits, owners cannot be."""
    SQUASH = "squash"
    """All files have one owner, and setting another has no effect; else as `PASSTHROUGH`."""


class Cache(StrEnum):
    """What the guest may remember without asking again."""

    NONE = "none"
    """Nothing."""
    AUTO = "auto"
    """Names and attributes for one second, contents as long as size and time of the file are the same."""
    ALWAYS = "always"
    """Everything for a day. What is written is written back later, at the latest when it is closed."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Most that a share may hold; a guest that wants more has EDQUOT.

    Counted are the sizes of regular files and symbolic links in whole blocks of 4096 bytes, holes included,
    once for all names of a file and as long as it is open; and all names but the root's. Under a quota a file
    has at most 4096 bytes of extended attributes besides.
    """

    bytes: int
    names: int | None = None
    """One for each block of `bytes` unless said: files, directories and links, each name of its own."""
    counter: str | os.PathLike[str] | None = None
    """A file outside of the share that all brokers of one volume name, in which they keep one account; made
    if it is not there. The first of them counts what the volume holds, as one without a counter does."""


@dataclass(frozen=True, slots=True)
class ShareOptions:
    """How a directory is shared."""

    read_only: bool = False
    ownership: Ownership = Ownership.VIRTUAL
    owner: tuple[int, int] = (0, 0)
    """User and group, as the guest numbers them, of files whose owner the guest has not set."""
    cache: Cache = Cache.AUTO
    follow_root: bool = False
    """The directory may be named by a symbolic link."""
    cross_mounts: bool = False
    """File systems that are mounted within are part of it."""
    link_guard: bool = False
    """Regular files with several names cannot be changed: the other names may be outside."""
    walk: bool = False
    """Resolve names without openat2(2), which is weaker; kernels before 5.6 have no other way."""
    watch: bool = False
    """Tell the guest, where agentd carries the stream, what the host changes; of a directory."""
    nodes: int = 1 << 18
    """Most files that are known to the guest at once; of more, those not used for long are dropped."""
    quota: Quota | None = None
    handles: int = 1 << 14
    """Most files that are open at once; half of what the process may open if that is less."""


class HasNumber(Protocol):
    """What has a file descriptor, as sockets do."""

    def fileno(self) -> int: ...


Stream = int | HasNumber


def _most(quota: Quota) -> tuple[int, int]:
    return quota.bytes, quota.bytes // 4096 if quota.names is None else quota.names


class MalformedMessage(ValueError):
    """What came is no FUSE message: who sends it has lost its place, and the mount has to end."""


class Device:
    """One share's device of virtio-fs: QEMU's `vhost-user-fs-device`, whose queues are in the guest's memory.

    `stream` is a connected stream socket of Unix with QEMU at its other end, which gets its answers from here
    on; closing it is the caller's. The guest's memory has to be a file that is sealed against shrinking, as
    QEMU's `memory-backend-memfd` is. The guest waits until a broker serves it.
    """

    def __init__(self, stream: Stream) -> None:
        number = stream if isinstance(stream, int) else stream.fileno()
        self._device = _native.Device(number)

    def refuse(self) -> None:
        """Answer EIO to all that the guest asks, until QEMU has ended or `stop` is called: it would wait
        otherwise. Blocks as `Broker.serve` does."""
        self._device.refuse()

    def stop(self) -> None:
        """End it from another thread, for good; the guest gets no more answers."""
        self._device.stop()


class Broker:
    """Serves the directory or the one regular file `path` to the kernel of one guest, which is taken for
    hostile.

    A file is the root of its mount (`rootmode=100000`), and stays that file whatever is put under its name
    later.

    Raises `OSError`: ELOOP if `path` is a symbolic link and `follow_root` is not set, ENOTDIR if it is
    anything else that is not a directory, EPERM for `/proc`.
    """

    def __init__(self, path: str | os.PathLike[str], options: ShareOptions | None = None) -> None:
        options = options or ShareOptions()
        uid, gid = options.owner
        self._broker = _native.Broker(
            path,
            read_only=options.read_only,
            ownership=options.ownership,
            uid=uid,
            gid=gid,
            cache=options.cache,
            follow_root=options.follow_root,
            cross_mounts=options.cross_mounts,
            link_guard=options.link_guard,
            walk=options.walk,
            watch=options.watch,
            nodes=options.nodes,
            handles=options.handles,
            quota=_most(options.quota) if options.quota else None,
            counter=options.quota.counter if options.quota else None,
        )

    def answer(self, message: bytes) -> bytes | None:
        """The reply to one whole FUSE request with its header, or `None` where the protocol has none.

        Several threads may call it at once; none waits for Python's lock meanwhile.

        Raises:
            MalformedMessage: what came is none.
        """
        try:
            return self._broker.answer(message)
        except ValueError as error:
            raise MalformedMessage(str(error)) from None

    def serve(self, stream: Stream, threads: int = 4) -> None:
        """Answers the requests that come on `stream`, a connected stream socket, until it ends; then
        nothing is open.

        On the stream are FUSE messages one after the other, both ways, each as long as its own first field
        says. Replies come in any order. At most `threads` requests (1 to 64) are at work at once, with at
        most 2 MiB of memory each; the rest waits in the socket. Their threads are confined to what is
        shared where `features()` has `landlock`. At the end the socket is shut down; closing it is the
        caller's.

        Blocks without Python's lock, and is not interrupted by signals: it wants a thread of its own.

        Raises:
            MalformedMessage: what came is none, or was cut off.
            OSError: ENOTSOCK or EPROTOTYPE if `stream` is no stream socket, EBUSY if the broker is serving
                already; what the system said when it failed.
        """
        number = stream if isinstance(stream, int) else stream.fileno()
        try:
            self._broker.serve(number, threads)
        except ValueError as error:
            raise MalformedMessage(str(error)) from None

    def serve_device(self, device: Device, threads: int = 4) -> None:
        """Answers the requests that come by `device` as `serve` does, until QEMU has ended.

        Raises:
            MalformedMessage: what came is none, or the guest has broken a queue.
            OSError: EBUSY if the broker or the device is serving already; what the system said when it
                failed.
        """
        try:
            self._broker.serve_device(device._device, threads)
        except ValueError as error:
            raise MalformedMessage(str(error)) from None

    def stop(self) -> None:
        """Ends `serve` and `serve_device` from another thread, for good: a later one returns at once."""
        self._broker.stop()

    @property
    def root_mode(self) -> int:
        """The type of what is shared, for `rootmode=` of the mount: `stat.S_IFDIR` or `stat.S_IFREG`."""
        return stat.S_IFDIR if self._broker.is_directory() else stat.S_IFREG

    @property
    def contained(self) -> bool:
        """Whether the kernel itself keeps every path beneath the root: openat2(2). Else it is walked, which
        is weaker."""
        return self._broker.contained()

    def counted(self) -> tuple[int, int] | None:
        """Bytes and names in the account of the quota, or `None` without one. The first call counts them."""
        return self._broker.counted()

    def usage(self) -> tuple[int, int]:
        """How many nodes the guest knows, the root among them, and how many files it has open."""
        return self._broker.usage()
