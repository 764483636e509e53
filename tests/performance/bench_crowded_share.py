"""Measures a broker whose guest lists a directory of many files, and makes as many up to a quota (F18, F16).

    python tests/performance/bench_crowded_share.py [--files 1000000] [--directory DIR]

No machine: the messages are those of a guest's kernel. While the directory is listed with attributes the
host removes a tenth of it: what stays is listed once, what goes at most once, and the broker takes less than
50 MiB. Then every file is looked up, so that the broker knows as many as it keeps, and a second one makes
files until it is told EDQUOT. Memory is that of the process, for all that was done so far.
"""

from __future__ import annotations

import argparse
import errno
import os
import struct
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from figures import fact, title
from microsandbox_fs import Broker, Quota, ShareOptions

LOOKUP, MKNOD, INIT, OPENDIR, READDIRPLUS = 1, 8, 26, 27, 44
ROOT = 1
MOST_MIB = 50
_HEADER = struct.Struct("<IIQQIIII")
_ATTRIBUTES = 128  # bytes of fuse_entry_out before each entry


class Guest:
    """Sends what a guest's kernel sends."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.call(INIT, struct.pack("<IIII48x", 7, 38, 1 << 17, 0xFFFFFFFF), node=0)

    def call(self, opcode: int, body: bytes, node: int = ROOT) -> bytes:
        """The body of the reply; raises `OSError`."""
        reply = self._broker.answer(_HEADER.pack(40 + len(body), opcode, 2, node, 0, 0, 1, 0) + body)
        assert reply is not None
        (error,) = struct.unpack_from("<i", reply, 4)
        if error:
            raise OSError(-error, os.strerror(-error))
        return reply[16:]


def named(number: int) -> bytes:
    """The name of a file, as a message has it."""
    return b"%08d\0" % number


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def fill(guest: Guest, files: int) -> None:
    """F16: as many as the quota has names for, and not one more."""
    made = 0
    try:
        while True:
            guest.call(MKNOD, struct.pack("<IIII", 0o100644, 0, 0o022, 0) + named(made))
            made += 1
    except OSError as error:
        if error.errno != errno.EDQUOT or made != files:
            raise RuntimeError(f"{made} of {files} files were made: {error}") from error


def listed(guest: Guest, seen: bytearray) -> None:
    """How often each file is listed, from the beginning to the end."""
    (handle,) = struct.unpack_from("<Q", guest.call(OPENDIR, bytes(8)))
    offset = 0
    while entries := guest.call(READDIRPLUS, struct.pack("<QQI20x", handle, offset, 1 << 17)):
        at = 0
        while at < len(entries):
            offset, length = struct.unpack_from("<QI", entries, at + _ATTRIBUTES + 8)
            name = entries[at + _ATTRIBUTES + 24 :][:length]
            if name not in {b".", b".."}:
                seen[int(name)] += 1
            at += _ATTRIBUTES + (24 + length + 7) // 8 * 8


def list_while_removing(guest: Guest, share: Path, files: int) -> bytearray:
    """F18: whether each file is still there, after a listing that missed and doubled none of those."""
    there, seen = bytearray(b"\1" * files), bytearray(files)

    def remove() -> None:
        for number in range(0, files, 10):
            (share / f"{number:08}").unlink()
            there[number] = 0

    remover = threading.Thread(target=remove)
    remover.start()
    listed(guest, seen)
    remover.join()
    wrong = [number for number in range(files) if not there[number] <= seen[number] <= 1]
    if wrong:
        raise RuntimeError(f"{len(wrong)} files were missed or doubled, {wrong[0]} among them")
    return there


def main(arguments: list[str] | None = None) -> int:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument(
        "--directory", type=Path, help="on which file system; by default that for temporary files"
    )
    options = parser.parse_args(arguments)
    files: int = options.files
    title(f"a directory with {files} files")
    with TemporaryDirectory(prefix="msb-bench-", dir=options.directory) as place:
        share, filled = Path(place, "share"), Path(place, "filled")
        filled.mkdir()
        share.mkdir()
        for number in range(files):
            (share / f"{number:08}").touch()
        before = resident()

        def took(what: str, broker: Broker, begun: float) -> float:
            each = (time.perf_counter() - begun) / files * 1e6
            memory = resident() - before
            fact(what, f"{each:7.1f} us each, {memory:6.1f} MiB more, {broker.usage()[0]} nodes known")
            return memory

        broker = Broker(share)
        guest = Guest(broker)
        begun = time.perf_counter()
        there = list_while_removing(guest, share, files)
        if took("listed with attributes", broker, begun) > MOST_MIB:
            raise RuntimeError(f"that is more than {MOST_MIB} MiB")
        begun = time.perf_counter()
        for number, is_there in enumerate(there):
            if is_there:
                guest.call(LOOKUP, named(number))
        took("looked up", broker, begun)
        broker = Broker(filled, ShareOptions(quota=Quota(1 << 40, names=files)))
        begun = time.perf_counter()
        fill(Guest(broker), files)
        took("made, to the quota", broker, begun)
    return 0


if __name__ == "__main__":
    sys.exit(main())
