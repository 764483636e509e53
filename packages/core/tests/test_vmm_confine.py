"""What a program that runs as the VMM can reach. (V01)"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_core.vmm import _confine
from microsandbox_core.vmm._process import spawn

# Tries what its argument says, and prints what came of each attempt: "done", or the error's name.
INTRUDER = r"""
import ctypes, errno, json, os, signal, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "syscall")

def connect(family, address):
    with socket.socket(family) as made:
        made.connect(address)

def bind(family, address):
    with socket.socket(family) as made:
        made.bind(address)

def thread():
    running = threading.Thread(target=lambda: None)
    running.start()
    running.join()

ATTEMPTS = {
    "read": lambda path: os.read(os.open(path, os.O_RDONLY), 1),
    "write": lambda path: os.open(path, os.O_WRONLY),
    "list": os.listdir,
    "make": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "mkdir": os.mkdir,
    "unlink": os.unlink,
    "rename": lambda path: os.rename(path, path + "-new"),
    "link": lambda path: os.link(path, path + "-new"),
    "symlink": lambda path: os.symlink("/etc", path),
    "truncate": lambda path: os.truncate(path, 0),
    "execute": lambda path: os.execv(path, [path]),
    "inherited": lambda number: os.pread(number, 1, 0),
    "reopen": lambda number: os.open(f"/proc/self/fd/{number}", os.O_RDWR),
    "unix": lambda path: connect(socket.AF_UNIX, path),
    "abstract": lambda name: connect(socket.AF_UNIX, "\0" + name),
    "tcp": lambda port: connect(socket.AF_INET, ("127.0.0.1", port)),
    "listen": lambda path: bind(socket.AF_UNIX, path),
    "signal": lambda pid: os.kill(pid, 0),
    "call": call,
    "thread": thread,
    "clone": lambda flags: call(56, flags | signal.SIGCHLD, 0, 0, 0, 0),
    "memory": lambda: os.close(os.open(f"/proc/self/fd/{os.memfd_create('x')}", os.O_RDWR)),
}
found = []
for name, *arguments in json.loads(sys.argv[1]):
    try:
        ATTEMPTS[name](*arguments)
    except OSError as error:
        found.append(errno.errorcode[error.errno])
    else:
        found.append("done")
print(json.dumps(found))
"""

landlock = pytest.mark.skipif(_confine.version() == 0, reason="this kernel has no Landlock")


class World:
    """A user's files and sockets, and somebody who runs as a VMM of that user."""

    def __init__(self, directory: Path) -> None:
        self.secret = directory / "id_rsa"
        self.secret.write_text("secret")
        self.kernel = directory / "kernel.elf"
        self.kernel.write_text("kernel")
        self.directory = directory
        self.held = os.open(self.secret, os.O_RDONLY | os.O_CLOEXEC)

    def attempt(self, *attempts: object, confined: bool = True) -> list[str]:
        """What came of each attempt."""
        ours, theirs = os.pipe()
        program = os.path.realpath(sys.executable)
        try:
            child = spawn(
                [program, "-I", "-S", "-c", INTRUDER, json.dumps(attempts)],
                inherit=[self.held],
                output=theirs,
                readable=[str(self.kernel)] if confined else None,
            )
        finally:
            os.close(theirs)
        with os.fdopen(ours) as reader:
            printed = reader.read()
        assert child.reap() == 0, printed
        found: list[str] = json.loads(printed)
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Gone afterwards."""
    world = World(tmp_path)
    yield world
    os.close(world.held)


@landlock
def test_files_that_are_not_its_own_are_out_of_reach(world: World) -> None:
    secret, new = str(world.secret), str(world.directory / "new")
    attempts = [
        *(["read", secret], ["write", secret], ["truncate", secret], ["list", str(world.directory)]),
        *(["make", new], ["mkdir", new], ["symlink", new]),
        *(["unlink", secret], ["rename", secret], ["link", secret]),
        *(["read", "/etc/passwd"], ["read", "/proc/self/environ"], ["read", f"/proc/{os.getpid()}/environ"]),
    ]
    assert world.attempt(*attempts) == ["EACCES"] * len(attempts)
    assert sorted(path.name for path in world.directory.iterdir()) == ["id_rsa", "kernel.elf"]
    assert world.secret.read_text() == "secret"


@landlock
def test_of_the_kernel_it_can_read_and_of_its_own_files_too(world: World) -> None:
    kernel = str(world.kernel)
    found = world.attempt(["read", kernel], ["write", kernel], ["read", json.__file__], ["execute", kernel])
    assert found == ["done", "EACCES", "done", "EACCES"]


@landlock
def test_what_it_holds_it_can_use_but_not_have_more_of(world: World) -> None:
    """So a template's memory, which it holds for reading, cannot be opened for writing."""
    assert world.attempt(["inherited", world.held], ["reopen", world.held]) == ["done", "EACCES"]


def test_it_connects_to_nobody(world: World) -> None:
    path, name = str(world.directory / "s"), f"msb-test-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.create_server(("127.0.0.1", 0)) as tcp,
    ):
        listening.bind(path)
        listening.listen()
        abstract.bind("\0" + name)
        abstract.listen()
        attempts = [["unix", path], ["abstract", name], ["tcp", tcp.getsockname()[1]]]
        assert world.attempt(*attempts, confined=False) == ["done"] * 3
        assert world.attempt(*attempts, ["listen", path + "2"]) == ["EPERM"] * 4


@pytest.mark.skipif(_confine.version() < 6, reason="this kernel's Landlock does not know signals")
def test_it_signals_nobody(world: World) -> None:
    assert world.attempt(["signal", os.getpid()]) == ["EPERM"]


def test_calls_that_lead_out_are_refused(world: World) -> None:
    numbers = sorted(_confine._REFUSED.values())
    assert world.attempt(*(["call", number, -1, -1, -1, -1, -1] for number in numbers)) == ["EPERM"] * len(
        numbers
    )
    new_user, x32 = 0x1000_0000, 0x4000_0000
    found = world.attempt(["clone", new_user], ["call", 435, 0, 0], ["call", x32 | 39], ["call", 39])
    assert found == ["EPERM", "ENOSYS", "ENOSYS", "done"]


def test_it_can_do_what_a_vmm_does(world: World) -> None:
    assert world.attempt(["thread"], ["memory"], ["write", "/dev/null"]) == ["done"] * 3


def test_without_landlock_the_rest_holds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_confine, "version", lambda: 0)
    assert world.attempt(["read", str(world.secret)], ["unix", "/nowhere"]) == ["done", "EPERM"]


@landlock
@pytest.mark.parametrize("known", range(1, 8))
def test_older_versions_of_landlock(world: World, monkeypatch: pytest.MonkeyPatch, known: int) -> None:
    if known > _confine.version():
        pytest.skip("this kernel's is older")
    monkeypatch.setattr(_confine, "version", lambda: known)
    assert world.attempt(["read", str(world.secret)], ["read", str(world.kernel)]) == ["EACCES", "done"]


def test_the_numbers_are_those_of_the_kernels_header() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the header is not installed")
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    ours = {name: str(number) for name, number in _confine._REFUSED.items() if name in known}
    assert ours == {name: known[name] for name in ours}
    assert len(ours) > 40
