"""A broker that serves a stream, from Python."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from microsandbox_fs import Broker, Device, MalformedMessage, ShareOptions, features

HEADER = struct.Struct("<IIQQIIII")
REPLY = struct.Struct("<IiQ")
LOOKUP, GETATTR, OPEN, READ, WRITE, INIT = 1, 3, 14, 15, 16, 26


class Guest:
    """The kernel of a guest at the other end of a stream."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream.makefile("rwb")
        self.call(INIT, 0, struct.pack("<IIII48x", 7, 38, 1 << 17, 0))

    def call(self, opcode: int, node: int, body: bytes) -> bytes:
        self.stream.write(HEADER.pack(HEADER.size + len(body), opcode, 7, node, 0, 0, 1, 0) + body)
        self.stream.flush()
        length, error, unique = REPLY.unpack(self.stream.read(REPLY.size))
        assert unique == 7
        if error:
            raise OSError(-error, os.strerror(-error))
        return self.stream.read(length - REPLY.size)


@contextmanager
def served(broker: Broker) -> Iterator[socket.socket]:
    """The guest's end; what `serve` raised is raised at the end."""
    ours, theirs = socket.socketpair()
    with ours, ThreadPoolExecutor(1) as pool:
        done = pool.submit(broker.serve, ours)
        try:
            with theirs:
                yield theirs
        finally:
            done.result(timeout=120)


def test_a_directory_is_served_until_the_stream_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    broker = Broker(tmp_path)
    assert broker.root_mode == stat.S_IFDIR
    assert broker.contained == ("openat2" in features())
    for _ in range(2):
        with served(broker) as stream:
            guest = Guest(stream)
            (node,) = struct.unpack_from("<Q", guest.call(LOOKUP, 1, b"file\0"))
            (handle,) = struct.unpack_from("<Q", guest.call(OPEN, node, bytes(8)))
            assert guest.call(READ, node, struct.pack("<QQI20x", handle, 0, 9)) == b"hello"
            assert broker.usage() == (2, 1)
            with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
                broker.serve(stream)
            guest.stream.close()
        assert broker.usage() == (1, 0)


def test_a_file_is_the_root_of_its_mount(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    (tmp_path / "other").write_text("other")
    broker = Broker(tmp_path / "file", ShareOptions(walk=True))
    assert broker.root_mode == stat.S_IFREG
    assert not broker.contained
    with served(broker) as stream:
        guest = Guest(stream)
        mode = struct.unpack_from("<I", guest.call(GETATTR, 1, bytes(16)), 16 + 60)[0]
        assert stat.S_ISREG(mode)
        (handle,) = struct.unpack_from("<Q", guest.call(OPEN, 1, struct.pack("<II", os.O_RDWR, 0)))
        write = struct.pack("<QQI20x", handle, 0, 4) + b"text"
        assert guest.call(WRITE, 1, write) == struct.pack("<II", 4, 0)
        for name in (b"other\0", b"file\0"):
            with pytest.raises(OSError, match=os.strerror(errno.ENOTDIR)):
                guest.call(LOOKUP, 1, name)
        guest.stream.close()
    assert (tmp_path / "file").read_text() == "texto"


def test_what_is_no_stream_of_messages_is_said_to_be_none(tmp_path: Path) -> None:
    # F23
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\xff" * 64)
        with pytest.raises(MalformedMessage, match="longer than any request"):
            Broker(tmp_path).serve(ours)
        with contextlib.suppress(ConnectionResetError):
            assert theirs.recv(1) == b""
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match=os.strerror(errno.ENOTSOCK)):
        Broker(tmp_path).serve(file)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        Broker(tmp_path).serve(-1)


def test_it_stops_for_good(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=broker.serve, args=(ours,))
        thread.start()
        broker.stop()
        thread.join(timeout=120)
        assert not thread.is_alive()
        assert theirs.recv(1) == b""
        broker.serve(ours)


def test_a_device_ends_with_its_socket(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        device = Device(ours)
        thread = threading.Thread(target=broker.serve_device, args=(device,))
        thread.start()
        # Nothing that vhost-user knows.
        theirs.sendall(b"\xff" * 64)
        thread.join(timeout=20)
        assert not thread.is_alive()
        device.refuse()
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match=os.strerror(errno.ENOTSOCK)):
        Device(file)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        Device(-1)
