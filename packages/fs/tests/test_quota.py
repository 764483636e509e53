"""Quotas from Python: brokers of one volume, and what a guest is told of the room that is left."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from microsandbox_fs import Broker, Quota, ShareOptions

HEADER = struct.Struct("<IIQQIIII")
INIT, STATFS, CREATE, WRITE = 26, 17, 35, 16


def call(broker: Broker, opcode: int, node: int, body: bytes) -> bytes:
    reply = broker.answer(HEADER.pack(HEADER.size + len(body), opcode, 7, node, 0, 0, 1, 0) + body)
    assert reply is not None
    error = struct.unpack_from("<i", reply, 4)[0]
    if error:
        raise OSError(-error, os.strerror(-error))
    return reply[16:]


def test_two_brokers_fill_one_volume(tmp_path: Path) -> None:
    # F15
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "there").write_bytes(bytes(4097))
    options = ShareOptions(quota=Quota(bytes=8 * 4096, counter=tmp_path / "counter"))
    one, two = Broker(volume, options), Broker(volume, options)
    assert one.counted() == two.counted() == (8192, 1)
    for broker, name, written in ((one, b"one\0", 6 * 4096), (two, b"two\0", 0)):
        call(broker, INIT, 0, struct.pack("<IIII48x", 7, 38, 1 << 17, 0))
        made = call(broker, CREATE, 1, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + name)
        (node,), (handle,) = struct.unpack_from("<Q", made), struct.unpack_from("<Q", made, 128)
        write = struct.pack("<QQI20x", handle, 0, 7 * 4096) + bytes(7 * 4096)
        if written:
            assert struct.unpack_from("<I", call(broker, WRITE, node, write)) == (written,)
        else:
            with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
                call(broker, WRITE, node, write)
    assert one.counted() == two.counted() == (8 * 4096, 3)
    blocks, free, _, files, room = struct.unpack_from("<5Q", call(one, STATFS, 1, b""))
    assert blocks > 0
    assert (free, files, room) == (0, 8, 5)
    assert Broker(volume).counted() is None


def test_an_account_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        Broker(tmp_path, ShareOptions(quota=Quota(4096, counter=tmp_path)))
