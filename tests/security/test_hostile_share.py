"""A guest's kernel that says what it likes to the host's file broker, through the port that a share has."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from microsandbox._config import MountConfig
from microsandbox.supervisor._shares import Shares

from tests.support.guest import bare_guest, configuration
from tests.support.programs import compiled

pytestmark = pytest.mark.vm

Part = bytes | str
"""Bytes of a message, or ``@N``: the 8 bytes that were kept as N."""

ROOT = 1
LOOKUP, FORGET, GETATTR, SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN = (
    1,
    2,
    3,
    4,
    6,
    *range(8, 15),
)
READ, WRITE, STATFS, SETXATTR, GETXATTR, REMOVEXATTR, INIT, OPENDIR = 15, 16, 17, 21, 22, 24, 26, 27
CREATE, FALLOCATE, RENAME2, COPY_FILE_RANGE = 35, 43, 45, 47
GREETING = b"MSBF" + struct.pack("<II", 0, 0)
NAMES = (b"", b".", b"..", b"a/b", b"/tmp/pwn", b"../../etc/passwd", b"file\0x", b"a" * 256)
NEVER_GIVEN = struct.pack("<Q", 0xDEAD)


class Script:
    """What `raw_port` is to do, and which error of each reply is expected: 0 for none, None for any but 0."""

    def __init__(self) -> None:
        self.lines = [f".{GREETING.hex()}"]
        self._expected: list[tuple[str, Iterable[int] | None]] = []
        self.ask("INIT", (), INIT, ROOT, struct.pack("<IIII48x", 7, 38, 1 << 17, 0))

    def ask(
        self, label: str, expected: Iterable[int] | None, opcode: int, node: int | Part, *parts: Part
    ) -> None:
        """Send a request; `expected`: errors, one of which is the answer; none for success."""
        if isinstance(node, int):
            node = struct.pack("<Q", node)
        unique = 2 + len(self._expected)
        size = 40 + sum(8 if isinstance(part, str) else len(part) for part in parts)
        header = (struct.pack("<IIQ", size, opcode, unique), node, struct.pack("<IIII", 0, 0, 1, 0))
        whole = (part if isinstance(part, str) else part.hex() for part in (*header, *parts))
        self.lines.append(f"?{''.join(whole)}")
        self._expected.append((label, expected))

    def keep(self, number: int, offset: int = 16) -> None:
        """Keep 8 bytes of the last reply as `number`: behind the header a node's or a handle's number."""
        self.lines.append(f"={number} {offset}")

    def say(self, label: str, data: bytes) -> None:
        """Send what is no message; the port ends with it, and takes no more."""
        self.lines.append(f"?{data.hex()}")
        self._expected.append((label, None))

    def check(self, printed: str) -> None:
        """Compare with what came."""
        replies = printed.splitlines()
        assert len(replies) == len(self._expected), printed[-2000:]
        wrong = []
        for reply, (label, expected) in zip(replies, self._expected, strict=True):
            if expected is None:
                wrong += [f"{label}: answered {reply[:80]}"] if reply != "end" else []
                continue
            if reply == "end":
                wrong.append(f"{label}: the mount has ended")
                continue
            (error,) = struct.unpack_from("<i", bytes.fromhex(reply), 4)
            if -error not in (set(expected) or {0}):
                wrong.append(f"{label}: {errno.errorcode.get(-error, error)}")
        assert not wrong, "\n".join(wrong)


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def longs(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def begin(script: Script) -> None:
    """Node of `file` as @0, its handle as @1, the node of the directory `sub` as @2."""
    script.ask("LOOKUP file", (), LOOKUP, ROOT, b"file\0")
    script.keep(0)
    script.ask("OPEN file", (), OPEN, "@0", words(os.O_RDONLY, 0))
    script.keep(1)
    script.ask("LOOKUP sub", (), LOOKUP, ROOT, b"sub\0")
    script.keep(2)


def names(script: Script) -> None:
    """F01 to F05: no name leads anywhere but to an entry of its directory."""
    bad = (errno.EINVAL, errno.ENAMETOOLONG)
    for name in NAMES:
        end = name + b"\0"
        script.ask(f"LOOKUP {name!r}", bad, LOOKUP, ROOT, end)
        script.ask(f"SYMLINK {name!r}", bad, SYMLINK, ROOT, end, b"target\0")
        script.ask(f"MKNOD {name!r}", bad, MKNOD, ROOT, words(0o100644, 0, 0, 0), end)
        script.ask(f"MKDIR {name!r}", bad, MKDIR, ROOT, words(0o755, 0), end)
        script.ask(f"UNLINK {name!r}", bad, UNLINK, ROOT, end)
        script.ask(f"RMDIR {name!r}", bad, RMDIR, ROOT, end)
        script.ask(f"CREATE {name!r}", bad, CREATE, ROOT, words(os.O_RDWR, 0o644, 0, 0), end)
        script.ask(f"LINK {name!r}", bad, LINK, ROOT, "@0", end)
        for old, new in ((b"file\0", end), (end, b"new\0")):
            script.ask(f"RENAME {old!r} {new!r}", bad, RENAME, ROOT, "@2", old, new)
            script.ask(f"RENAME2 {old!r} {new!r}", bad, RENAME2, ROOT, "@2", words(0, 0), old, new)


def links(script: Script) -> None:
    """F08: what a link says is for the guest to follow; the host opens none, magic ones neither."""
    for name in (b"magic", b"out", b"up"):
        script.ask(f"LOOKUP {name!r}", (), LOOKUP, ROOT, name + b"\0")
        script.keep(3)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_DIRECTORY):
            script.ask(f"OPEN {name!r}", (errno.ELOOP,), OPEN, "@3", words(flags, 0))
        script.ask(f"OPENDIR {name!r}", (errno.ENOTDIR, errno.ELOOP), OPENDIR, "@3", words(0, 0))
        script.ask(f"LOOKUP {name!r}/x", (errno.ENOTDIR, errno.ELOOP), LOOKUP, "@3", b"passwd\0")


def numbers(script: Script) -> None:
    """F10: nodes and handles that were never given, or have been given back."""
    for node in (NEVER_GIVEN, longs(0), longs(2**64 - 1)):
        script.ask("GETATTR of no node", (errno.ESTALE,), GETATTR, node, longs(0, 0))
        script.ask("LOOKUP in no node", (errno.ESTALE,), LOOKUP, node, b"file\0")
        script.ask("OPEN of no node", (errno.ESTALE,), OPEN, node, words(os.O_RDWR, 0))
    pairs: tuple[tuple[Part, Part], ...] = (("@0", NEVER_GIVEN), ("@2", "@1"), (NEVER_GIVEN, "@1"))
    none = (errno.EBADF, errno.ESTALE)
    for of, handle in pairs:
        script.ask("READ", none, READ, of, handle, longs(0), words(9, 0), longs(0), words(0, 0))
        script.ask("WRITE", none, WRITE, of, handle, longs(0), words(1, 0), longs(0), words(0, 0), b"x")
    script.ask(
        "READ beyond", (errno.EINVAL,), READ, "@0", "@1", longs(2**63), words(9, 0), longs(0), words(0, 0)
    )
    script.ask("LOOKUP sub", (), LOOKUP, "@2", b"inner\0")
    script.keep(4)


def attributes(script: Script) -> None:
    """F22, F23: names that are the host's, and requests that there are not."""
    for name in (
        b"security.capability",
        b"trusted.overlay.opaque",
        b"user.microsandbox.owner",
        b"system.posix_acl_access",
    ):
        script.ask(
            f"SETXATTR {name!r}", (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES), SETXATTR, "@0",
            words(4, 0), name + b"\0", b"evil",
        )  # fmt: skip
    for opcode in (0, 7, 19, 31, 37, 39, 40, 41, 48, 49, 999, 2**32 - 1):
        script.ask(f"opcode {opcode}", (errno.ENOSYS,), opcode, "@0", bytes(64))
    script.ask("MKNOD cut", (errno.EINVAL,), MKNOD, ROOT, b"\0")
    script.ask("STATFS", (), STATFS, ROOT)


def changes(script: Script) -> None:
    """F09: whatever the guest's kernel thinks of its mount."""
    read_only = (errno.EROFS,)
    at = words(os.O_WRONLY, 0)
    script.ask("OPEN to write", read_only, OPEN, "@0", at)
    script.ask("OPEN to truncate", read_only, OPEN, "@0", words(os.O_RDONLY | os.O_TRUNC, 0))
    script.ask("WRITE", read_only, WRITE, "@0", "@1", longs(0), words(1, 0), longs(0), words(0, 0), b"x")
    for valid in (1 << 0, 1 << 1, 1 << 3, 1 << 5):
        script.ask(f"SETATTR {valid:#x}", read_only, SETATTR, "@0", words(valid), bytes(84))
    script.ask("UNLINK", read_only, UNLINK, ROOT, b"file\0")
    script.ask("RENAME", read_only, RENAME, ROOT, longs(ROOT), b"file\0new\0")
    script.ask("SETXATTR", read_only, SETXATTR, "@0", words(1, 0), b"user.a\0", b"x")
    script.ask("REMOVEXATTR", read_only, REMOVEXATTR, "@0", b"user.a\0")
    script.ask("FALLOCATE", read_only, FALLOCATE, "@0", "@1", longs(0, 4096), words(0, 0))
    script.ask(
        "COPY_FILE_RANGE", read_only, COPY_FILE_RANGE, "@0", "@1", longs(0), "@0", "@1", longs(0, 4, 0)
    )
    script.ask("CREATE", read_only, CREATE, ROOT, words(os.O_RDWR, 0o644, 0, 0), b"new\0")


def tree(path: Path) -> dict[str, object]:
    """All that is below, with what a guest might change of it."""
    found: dict[str, object] = {}
    for each in sorted(path.rglob("*")):
        status = each.lstat()
        content = each.readlink() if each.is_symlink() else each.read_bytes() if each.is_file() else None
        found[str(each.relative_to(path))] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
    return found


def test_a_kernel_that_says_what_it_likes_reaches_nothing_but_the_share(
    shared_home: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_bytes(b"not shared\n")
    for name in ("live", "fixed", "tools"):
        share = tmp_path / name
        (share / "sub").mkdir(parents=True)
        (share / "sub" / "inner").write_bytes(b"inner\n")
        (share / "file").write_bytes(b"as it was\n")
        os.setxattr(share / "file", "user.a", b"1")
        (share / "magic").symlink_to("/proc/self/fd/0")
        (share / "out").symlink_to(outside)
        (share / "up").symlink_to("..")
    scripts = {"live": Script(), "fixed": Script()}
    for script in scripts.values():
        begin(script)
    for part in (names, links, numbers, attributes):
        part(scripts["live"])
    changes(scripts["fixed"])
    for script in scripts.values():
        # What is no message ends the mount, and no other.
        script.say("length beyond any message", words(2**32 - 1, LOOKUP) + bytes(32))
    tools = tmp_path / "tools"
    program = tools / "raw_port"
    program.write_bytes(compiled("raw_port"))
    program.chmod(0o755)
    for name, script in scripts.items():
        (tools / name).write_text("\n".join(script.lines) + "\n")
    before = {name: tree(tmp_path / name) for name in ("live", "fixed", "outside")}

    mounts = [
        MountConfig("/tools", str(tools)),
        MountConfig("/live", str(tmp_path / "live")),
        MountConfig("/fixed", str(tmp_path / "fixed"), read_only=True),
    ]
    with bare_guest(shared_home, settings, monkeypatch, tmp_path / "upper") as guest:
        shares = Shares(guest.vm, mounts, None, tmp_path)
        # agentd knows of the first only: the others' ports are for who opens them.
        assert guest.ask("configure", **configuration(mounts=shares.parameters()[:1])) is None
        for number, (name, script) in enumerate(scripts.items(), 1):
            script.check(guest.run(f"/tools/raw_port msb.fs.{number} < /tools/{name}"))
        assert guest.run("cat /tools/file") == "as it was\n"
    shares.join()
    assert {name: tree(tmp_path / name) for name in before} == before
    assert not Path("/tmp/pwn").exists()
