"""The broker from Python: raw FUSE messages in, replies out."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
from pathlib import Path

import pytest
from microsandbox_fs import Broker, Cache, MalformedMessage, Ownership, ShareOptions

LOOKUP, FORGET, OPEN, READ, INIT, CREATE = 1, 2, 14, 15, 26, 35
ROOT = 1
HEADER = struct.Struct("<IIQQIIII")
REPLY = struct.Struct("<IiQ")


class Guest:
    """The kernel of a guest that has mounted `broker`."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.call(INIT, 0, struct.pack("<IIII48x", 7, 38, 1 << 17, 0))

    def call(self, opcode: int, node: int, body: bytes) -> bytes:
        message = HEADER.pack(HEADER.size + len(body), opcode, 7, node, 1000, 1000, 1, 0) + body
        reply = self.broker.answer(message)
        if reply is None:
            return b""
        length, error, unique = REPLY.unpack_from(reply)
        assert (length, unique) == (len(reply), 7)
        if error:
            raise OSError(-error, os.strerror(-error))
        return reply[REPLY.size :]


def test_a_file_is_made_and_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    guest = Guest(Broker(tmp_path, ShareOptions(owner=(1000, 1000))))
    (node,) = struct.unpack_from("<Q", guest.call(LOOKUP, ROOT, b"file\0"))
    (handle,) = struct.unpack_from("<Q", guest.call(OPEN, node, bytes(8)))
    assert guest.call(READ, node, struct.pack("<QQI20x", handle, 0, 100)) == b"hello"
    assert guest.broker.usage() == (2, 1)
    assert guest.call(FORGET, node, struct.pack("<Q", 1)) == b""

    guest.call(CREATE, ROOT, struct.pack("<IIII", 1, 0o4777, 0, 0) + b"made\0")
    assert (tmp_path / "made").stat().st_mode == 0o100600


@pytest.mark.parametrize("name", [b"../../etc/passwd", b"a/b", b"", b"..", b"/tmp/pwn"])
def test_names_of_more_than_one_entry_are_refused(tmp_path: Path, name: bytes) -> None:
    # F01, F02, F03
    guest = Guest(Broker(tmp_path))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        guest.call(LOOKUP, ROOT, name + b"\0")


def test_a_read_only_share_makes_nothing(tmp_path: Path) -> None:
    # F09
    options = ShareOptions(read_only=True, ownership=Ownership.SQUASH, cache=Cache.NONE)
    guest = Guest(Broker(tmp_path, options))
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        guest.call(CREATE, ROOT, struct.pack("<IIII", 1, 0o644, 0, 0) + b"made\0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("message", [b"", bytes(39), bytes(40), b"\xff" * 64])
def test_what_is_no_message_is_said_to_be_none(tmp_path: Path, message: bytes) -> None:
    # F23
    with pytest.raises(MalformedMessage, match="no FUSE message"):
        Broker(tmp_path).answer(message)


def test_a_root_that_is_a_link_is_refused_unless_asked_for(tmp_path: Path) -> None:
    # F19
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)) as caught:
        Broker(tmp_path / "link")
    assert caught.value.filename == str(tmp_path / "link")
    Broker(tmp_path / "link", ShareOptions(follow_root=True))
    with pytest.raises(FileNotFoundError):
        Broker(tmp_path / "none")


def test_a_broker_out_of_descriptors_says_so_and_goes_on(tmp_path: Path) -> None:
    # F17
    (tmp_path / "file").touch()
    guest = Guest(Broker(tmp_path))
    held: list[int] = []
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), before[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(tmp_path, os.O_RDONLY))
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            guest.call(LOOKUP, ROOT, b"file\0")
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert guest.call(LOOKUP, ROOT, b"file\0")
