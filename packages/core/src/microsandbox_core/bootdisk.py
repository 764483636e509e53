"""The boot disk: a small EROFS with agentd and the empty directories it mounts on.

Every guest boots from it (`root=/dev/vda rootfstype=erofs init=/agentd`). The tree is fixed and
tiny, so this writes it directly: one metadata block with the superblock, the root directory and
the mount points, then agentd's bytes. On-disk format: Linux `fs/erofs/erofs_fs.h`.
"""

from __future__ import annotations

import stat
import struct
from pathlib import Path
from typing import NamedTuple

from microsandbox_core.artifacts import Stamp, identity, publish
from microsandbox_core.digests import sha256
from microsandbox_core.errors import AgentMissing

MOUNT_POINTS = ("dev", "image", "newroot", "proc", "run", "sys", "tmp", "upper")
"""Directories on the boot disk; agentd mounts on them before it changes to the image's root."""

_BLOCK = 4096
_SUPERBLOCK_OFFSET = 1024
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_MAGIC = 0xE0F5E1E2
_SLOT = 32  # a node id is the inode's offset in units of 32 bytes
_COMPACT_INODE = struct.Struct("<HHHHIIIIHHI")
_DIRENT = struct.Struct("<QHBB")
_FLAT_PLAIN, _FLAT_INLINE = 0, 2
_TYPE_FILE, _TYPE_DIRECTORY = 1, 2


class BootDisk(NamedTuple):
    """A boot disk in the cache, and the SHA-256 of its bytes (64 hex digits)."""

    path: Path
    digest: str


def agent_binary() -> Path:
    """The agentd that this installation carries. Raises `AgentMissing`."""
    path = Path(__file__).parent / "_agent" / "agentd"
    if not path.is_file():
        raise AgentMissing(
            f"agentd is missing from this installation ({path})",
            hint="reinstall microsandbox-core; in a checkout run `make setup`",
        )
    return path


def build(agent: bytes) -> bytes:
    """The whole disk image for this agentd, a multiple of 4096 bytes."""
    names = sorted([".", "..", "agentd", *MOUNT_POINTS], key=str.encode)
    first = (_SUPERBLOCK_OFFSET + _SUPERBLOCK.size) // _SLOT
    root = first
    root_entries = sum(_DIRENT.size + len(name) for name in names)
    cursor = root + _slots(_COMPACT_INODE.size + root_entries)
    agent_node, cursor = cursor, cursor + 1
    empty_size = 2 * _DIRENT.size + len("." + "..")
    nodes = {".": root, "..": root, "agentd": agent_node}
    for name in MOUNT_POINTS:
        nodes[name] = cursor
        cursor += _slots(_COMPACT_INODE.size + empty_size)
    if cursor * _SLOT > _BLOCK:
        raise AssertionError("the mount points no longer fit into one block")

    block = bytearray(_BLOCK)

    def put(node: int, content: bytes) -> None:
        block[node * _SLOT : node * _SLOT + len(content)] = content

    listing = _directory([(name, nodes[name], name == "agentd") for name in names])
    links = 2 + len(MOUNT_POINTS)
    put(root, _inode(_FLAT_INLINE, stat.S_IFDIR | 0o755, links, len(listing), 0, 1) + listing)
    put(agent_node, _inode(_FLAT_PLAIN, stat.S_IFREG | 0o755, 1, len(agent), 1, 2))
    for number, name in enumerate(MOUNT_POINTS, start=3):
        listing = _directory([(".", nodes[name], False), ("..", root, False)])
        put(nodes[name], _inode(_FLAT_INLINE, stat.S_IFDIR | 0o755, 2, len(listing), 0, number) + listing)

    data = agent.ljust(-(-len(agent) // _BLOCK) * _BLOCK, b"\0")
    _SUPERBLOCK.pack_into(
        block,
        _SUPERBLOCK_OFFSET,
        _MAGIC,
        0,  # no checksum: the whole file's digest is checked on the host
        0,
        12,
        0,
        root,
        2 + len(MOUNT_POINTS),
        0,
        0,
        1 + len(data) // _BLOCK,
        0,
        0,
        sha256(agent).digest()[:16],
        b"msb-boot",
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    return bytes(block) + data


def _slots(size: int) -> int:
    return -(-size // _SLOT)


def _inode(layout: int, mode: int, links: int, size: int, block: int, number: int) -> bytes:
    return _COMPACT_INODE.pack(layout << 1, 0, mode, links, size, 0, block, number, 0, 0, 0)


def _directory(entries: list[tuple[str, int, bool]]) -> bytes:
    """One directory block: fixed-size entries first, then the names they point at."""
    offset = len(entries) * _DIRENT.size
    head, tail = b"", b""
    for name, node, is_file in entries:
        head += _DIRENT.pack(node, offset + len(tail), _TYPE_FILE if is_file else _TYPE_DIRECTORY, 0)
        tail += name.encode()
    return head + tail


def ensure_boot_disk(home: Path, *, agent: Path | None = None) -> BootDisk:
    """The boot disk for `agent` (default: the one in this installation), from the cache or made.

    Raises `AgentMissing` or `StorageError`.
    """
    binary = agent_binary() if agent is None else agent
    directory = home / "cache" / "boot"
    try:
        source = sha256(f"{binary}\n{identity(binary)}".encode()).hexdigest()[:32]
    except OSError as error:
        raise AgentMissing(f"cannot read {binary}: {error.strerror}") from error
    known = directory / f"from-{source}"
    try:
        digest = known.read_text()
    except (OSError, UnicodeDecodeError):
        digest = ""
    if len(digest) == 64:
        stamp = Stamp(directory / f"{digest}.erofs", digest)
        if stamp.holds():
            return BootDisk(stamp.path, digest)
    content = build(binary.read_bytes())
    digest = sha256(content).hexdigest()
    stamp = Stamp(directory / f"{digest}.erofs", digest)
    publish(stamp.path, content)
    stamp.write()
    publish(known, digest.encode(), mode=0o600)
    return BootDisk(stamp.path, digest)
