"""Copying what a process has written to a private mapping, and files, at one moment."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_core.errors import Unsupported
from microsandbox_core.vmm.saved import Capture, add_memory, copy_memory, written

PAGE = 4096
PAGES = 64
WRITTEN = {0: b"first", 5: b"five", 6: b"six", 63: b"last"}


class Mapped:
    """A process that maps a file privately, as a VMM does, and has written to some of its pages."""

    def __init__(self, file: Path | None) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            descriptor = -1 if file is None else os.open(file, os.O_RDONLY)
            flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if file is None else 0)
            memory = mmap.mmap(descriptor, PAGES * PAGE, flags, mmap.PROT_READ | mmap.PROT_WRITE)
            for page, text in WRITTEN.items():
                memory[page * PAGE : page * PAGE + len(text)] = text
            _ = memory[10 * PAGE]  # read, which makes it nobody's own
            import ctypes

            theirs.sendall(ctypes.addressof(ctypes.c_char.from_buffer(memory)).to_bytes(8, "little"))
            theirs.recv(1)
            os._exit(0)
        theirs.close()
        self.address = int.from_bytes(ours.recv(8), "little")
        self._connection = ours

    def end(self) -> None:
        self._connection.close()
        os.waitpid(self.pid, 0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(b"".join(bytes([page]) * PAGE for page in range(PAGES)))
    return path


@pytest.fixture
def mapped(base: Path) -> Iterator[Mapped]:
    process = Mapped(base)
    yield process
    process.end()


def _expected(base: bytes) -> bytes:
    found = bytearray(base)
    for page, text in WRITTEN.items():
        found[page * PAGE : page * PAGE + len(text)] = text
    return bytes(found)


def test_only_what_was_written_to_is_the_process_s_own(mapped: Mapped) -> None:
    runs = written(mapped.pid, mapped.address, PAGES * PAGE)
    assert runs == [(0, PAGE), (5 * PAGE, 2 * PAGE), (63 * PAGE, PAGE)]


@pytest.mark.parametrize("room", [0, 2 * PAGE, 1 << 20])
def test_file_and_pages_make_the_memory(mapped: Mapped, base: Path, tmp_path: Path, room: int) -> None:
    memory = tmp_path / "memory"
    copy_memory(mapped.pid, PAGES * PAGE, memory)
    assert memory.read_bytes() == base.read_bytes()
    capture = Capture(room)
    add_memory(capture, mapped.pid, mapped.address, PAGES * PAGE, memory)
    assert capture.size == 4 * PAGE
    capture.write()
    capture.close()
    assert memory.read_bytes() == _expected(base.read_bytes())


def test_memory_that_came_from_no_file(tmp_path: Path) -> None:
    process = Mapped(None)
    try:
        memory = tmp_path / "memory"
        copy_memory(process.pid, PAGES * PAGE, memory)
        capture = Capture(1 << 20)
        add_memory(capture, process.pid, process.address, PAGES * PAGE, memory)
        capture.write()
        capture.close()
        assert memory.read_bytes() == _expected(bytes(PAGES * PAGE))
    finally:
        process.end()


def test_what_a_host_hides_is_unsupported(
    mapped: Mapped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Unsupported, match="does not let the machine's memory be read"):
        written(mapped.pid, mapped.address, PAGES * PAGE)


def test_a_file_is_copied_as_it_was_with_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        for place in (0, 5 << 20, (64 << 20) - 3):
            file.seek(place)
            file.write(b"abc")
    capture = Capture(PAGE)
    read = capture.add_file(source, target)
    assert read == capture.size
    before = source.read_bytes()
    with source.open("r+b") as file:
        file.write(b"later")
    capture.write()
    capture.close()
    assert target.read_bytes() == before
    assert target.stat().st_blocks * 512 < 1 << 20


def test_a_copy_must_not_exist(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    capture = Capture()
    with pytest.raises(FileExistsError):
        capture.add_file(tmp_path / "a", tmp_path / "b")
    capture.close()
