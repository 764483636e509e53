"""A child that opens a file for writing is handed a read-only descriptor of it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from microsandbox_core.errors import BootFailed, TemplateFailed
from microsandbox_core.templates import Templates
from microsandbox_core.vmm import Capability, _handover, _process, _start
from microsandbox_core.vmm._handover import Offer
from microsandbox_core.vmm._process import Child, spawn

# Opens its arguments, "flags:path", and prints of each the access mode and whether it is closed on exec, or
# the error. "wait" waits for its input's end.
OPENER = """
import ctypes, fcntl, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for argument in sys.argv[2:]:
    flags, _, path = argument.partition(":")
    if flags == "wait":
        os.read(int(sys.argv[1]), 1)
        continue
    address = 1 if path == "nowhere" else path.encode()
    # By number, because glibc's open() is openat(2).
    if flags.startswith("old"):
        number = libc.syscall(2, address, int(flags[3:]))
    else:
        number = libc.syscall(257, -100, address, int(flags))
    if number < 0:
        print(ctypes.get_errno(), flush=True)
    else:
        status, closed = fcntl.fcntl(number, fcntl.F_GETFL), fcntl.fcntl(number, fcntl.F_GETFD)
        print(status & os.O_ACCMODE, closed, os.fstat(number).st_ino, flush=True)
"""

RDWR = os.O_RDWR


class Opener:
    """Runs `OPENER` with a file on offer."""

    def __init__(self, file: Path) -> None:
        self.file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.file).st_ino
        self.name = f"/proc/self/fd/{self.file}"
        self._input, self._go = os.pipe()
        self._read, self._output = os.pipe()

    def start(self, *attempts: str, seconds: float = 30, program: str = sys.executable) -> Child:
        arguments = [program, "-I", "-S", "-c", OPENER, str(self._input), *attempts]
        return spawn(
            arguments,
            inherit=[self.file, self._input],
            output=self._output,
            readable=(),
            offer=Offer(self.name, self.file, seconds),
        )

    def end(self, child: Child) -> list[list[int]]:
        """Let it go on where it waits, and return the numbers that it printed."""
        os.write(self._go, b"x")
        assert child.reap() == 0
        os.write(self._output, b"\n")  # a pipe in which there is nothing would be waited for
        printed = os.read(self._read, 1 << 16).decode().removesuffix("\n")
        return [[int(number) for number in line.split()] for line in printed.splitlines()]

    def attempt(self, *attempts: str) -> list[list[int]]:
        return self.end(self.start(*attempts))

    def close(self) -> None:
        for descriptor in (self.file, self._input, self._go, self._read, self._output):
            os.close(descriptor)


@pytest.fixture
def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Also checks that nothing is left open in this process, and no child."""
    # The program here opens files of the test's; `test_vmm_confine` is about what a VMM can open.
    monkeypatch.setattr(_process, "confine", lambda program, readable: None)
    before = _open_descriptors()
    children = _children()
    file = tmp_path / "file"
    file.write_bytes(b"content")
    opener = Opener(file)
    yield opener
    opener.close()
    assert _open_descriptors() == before
    assert _children() <= children


@pytest.mark.parametrize("flags", [f"{RDWR}", f"{RDWR | os.O_CLOEXEC}", f"old{RDWR}"])
def test_the_file_is_handed_over_for_reading_and_nobody_listens_any_more(opener: Opener, flags: str) -> None:
    first, again, other = opener.attempt(
        f"{flags}:{opener.name}", f"{flags}:{opener.name}", f"{flags}:/dev/null"
    )
    assert first == [os.O_RDONLY, 1, opener.inode]
    assert again == other == [errno.ENOSYS]


def test_what_it_opens_before_is_as_it_asked_for(opener: Opener, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    longer = f"{opener.name}0"
    seen = opener.attempt(
        f"{RDWR}:{other}",
        f"{RDWR}:{longer}",
        f"{RDWR}:nowhere",
        f"{os.O_RDONLY}:{opener.name}",
        f"{RDWR}:{opener.name}",
    )
    assert seen == [
        [os.O_RDWR, 0, other.stat().st_ino],
        [errno.ENOENT],
        [errno.EFAULT],
        [os.O_RDONLY, 0, opener.inode],
        [os.O_RDONLY, 1, opener.inode],
    ]


def test_a_child_that_ends_before_it_opens_the_file(opener: Opener) -> None:
    assert opener.attempt() == []


def test_a_child_that_is_killed_before_it_opens_the_file(opener: Opener) -> None:
    child = opener.start("wait")
    child.kill()
    assert child.reap() == -9


def test_a_child_that_is_too_late(opener: Opener) -> None:
    child = opener.start("wait", f"{RDWR}:{opener.name}", seconds=0.01)
    assert child._handover is not None
    child._handover.join()
    assert opener.end(child) == [[errno.ENOSYS]]


def test_a_program_that_is_not_there(opener: Opener) -> None:
    with pytest.raises(BootFailed, match="No such file"):
        opener.start(program="/nowhere")


def test_a_host_that_refuses_a_listener(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EBUSY, "seccomp")

    monkeypatch.setattr(_process, "install", refuse)
    with pytest.raises(TemplateFailed, match="Device or resource busy"):
        opener.start()


def test_a_kernel_that_cannot_send_descriptors(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handover, "_ADDFD_SEND", 1 << 7)
    with pytest.raises(TemplateFailed, match="Invalid argument"):
        opener.start("wait")


def test_the_kernel_is_booted_where_nothing_can_be_handed_over(tmp_path: Path) -> None:
    class Driver:
        """Has a template and cannot use it."""

        capabilities = frozenset({Capability.TEMPLATE})

        def template_key(self, *_: object) -> str:
            return "0" * 64

        def start_template(self, *_: object) -> Any:
            raise TemplateFailed("not here")

        def start(self, spec: object) -> Any:
            return "booted"

    class Digest:
        digest = ""

    templates = Templates(tmp_path)
    made = templates.temporary("0" * 64)
    (made / "memory").touch()
    (made / "state").touch()
    templates.publish("0" * 64, made, basis="b", vcpus=1, memory_mib=64)
    told: list[str] = []
    driver: Any = Driver()
    digest: Any = Digest()
    started: Any = _start.start(tmp_path, driver, digest, digest, digest, note=told.append)
    assert started == "booted"
    assert told == ["no start from a template: not here"]
    assert templates.find("0" * 64) is not None


def _children() -> set[int]:
    """The children of this process, dead ones too. Other tests in it may have some that go on."""
    children: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            children.update(int(child) for child in (task / "children").read_text().split())
    return children


def _open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}
