"""Files in and out of running sandboxes, between them and in them: `msb cp` and `Sandbox.fs`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from microsandbox import FileKind, FilesystemError, NotRunning, PathNotFound, Sandbox

from tests.support.host import Host
from tests.support.msb import PROGRAM, Msb
from tests.support.terminal import Terminal

pytestmark = pytest.mark.vm

MIB = 1 << 20
GROWTH = 48 * MIB
"""What buffers and an emulator's code cache may take while 200 MiB pass through."""
WHEN = 981_173_106_123_456_789


@pytest.fixture
def box(msb: Msb) -> Iterator[Msb]:
    """A sandbox named ``box`` runs."""
    msb("create", "busybox", "--name", "box", "-m", "128M").succeeded()
    yield msb
    msb("rm", "--force", "box").succeeded()


def shell(msb: Msb, script: str, name: str = "box") -> bytes:
    return msb("exec", name, "--", "sh", "-c", script).succeeded().out


def make_tree(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "file").write_bytes(bytes(range(256)) * 600)
    (root / "deep" / "file").chmod(0o4751)
    (root / "empty").touch()
    (root / "two\nlines \x1b[31m").write_text("name")
    (root / os.fsdecode(b"\xff\xfe")).write_text("no UTF-8")
    (root / "link").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("no/where")
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(32 * MIB)
        sparse.write(b"middle")
        sparse.truncate(64 * MIB)
    for path in (root / "deep" / "file", root / "deep" / "er", root / "deep", root):
        os.utime(path, ns=(WHEN, WHEN))


def snapshot(root: Path, *, mask: int = 0o777) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        facts = path.lstat()
        content = b""
        if path.is_symlink():
            content = bytes(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        kind, mode = stat.S_IFMT(facts.st_mode), facts.st_mode & mask
        found[str(path.relative_to(root))] = (kind, mode, facts.st_mtime_ns, content)
    return found


# ------------------------------------------------------------------------------------------------- msb cp


def test_a_tree_goes_in_and_comes_out_as_it_was(box: Msb, tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_tree(source)
    assert box("cp", source, "box:/srv").succeeded().out == b""
    inside = shell(
        box, "cd /srv; stat -c '%a %Y %u:%g' deep deep/file; readlink link; du -k sparse | cut -f1"
    )
    assert inside.split()[:-1] == b"755 981173106 0:0 751 981173106 0:0 /etc/passwd".split()
    assert int(inside.split()[-1]) < 1000  # sparse in there too
    box("cp", "box:/srv", tmp_path / "copy").succeeded()
    assert snapshot(tmp_path / "copy") == snapshot(source)
    assert (tmp_path / "copy" / "sparse").stat().st_blocks < 1000
    assert not (tmp_path / "copy" / "deep" / "file").stat().st_mode & stat.S_ISUID


def test_special_bits_are_kept_when_asked_for(box: Msb, tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    box("cp", "--special-bits", tmp_path / "source", "box:/srv").succeeded()
    box("cp", "--special-bits", "box:/srv", tmp_path / "copy").succeeded()
    assert snapshot(tmp_path / "copy", mask=0o7777) == snapshot(tmp_path / "source", mask=0o7777)


def test_destinations_are_those_of_cp(box: Msb, tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "f").write_text("one\n")
    (tmp_path / "there").mkdir()
    for source, inside in (
        ("d", "/new"),
        ("d", "/tmp"),
        ("d/.", "/content"),
        ("d/.", "/tmp"),
        ("d/f", "/tmp/named"),
        ("d/f", "/tmp/"),
    ):
        box("cp", f"{tmp_path}/{source}", f"box:{inside}").succeeded()
    listed = shell(box, "find /new /content /tmp | sort").decode().split()
    assert listed == [
        "/content", "/content/f", "/content/sub", "/new", "/new/f", "/new/sub", "/tmp",
        "/tmp/d", "/tmp/d/f", "/tmp/d/sub", "/tmp/f", "/tmp/named", "/tmp/sub",
    ]  # fmt: skip
    box("cp", "box:/new", f"{tmp_path}/there").succeeded()
    box("cp", "box:/new/.", f"{tmp_path}/there/").succeeded()
    box("cp", "box:/new/f", f"{tmp_path}/there/named").succeeded()
    found = sorted(str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*"))
    assert found == ["f", "named", "new", "new/f", "new/sub", "sub"]
    # What is there is replaced, and a directory is merged into.
    (tmp_path / "d" / "f").write_text("two\n")
    box("cp", tmp_path / "d", "box:/tmp").succeeded()
    assert shell(box, "cat /tmp/d/f; rm /tmp/d/f; ln -s /etc/passwd /tmp/d/f") == b"two\n"
    box("cp", tmp_path / "d", "box:/tmp").succeeded()
    assert shell(box, "test -L /tmp/d/f || cat /tmp/d/f; grep -c two /etc/passwd; true") == b"two\n0\n"


def test_between_sandboxes_and_within_one(box: Msb, tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    box("create", "busybox", "--name", "other", "-m", "128M").succeeded()
    try:
        box("cp", tmp_path / "source", "box:/srv").succeeded()
        box("cp", "box:/srv", "other:/here").succeeded()
        box("cp", "other:/here", "other:/there").succeeded()
        box("cp", "other:/there", tmp_path / "copy").succeeded()
        assert snapshot(tmp_path / "copy") == snapshot(tmp_path / "source")
        assert "into itself" in box("cp", "other:/here", "other:/here/below").failed(1)
        # One that is stopped is started for it.
        box("stop", "other").succeeded()
        box("cp", "box:/srv", "other:/x").succeeded()
        assert "into itself" in box("cp", "other:/x", "other:/x/below").failed(1)
        (tmp_path / "copy").rename(tmp_path / "before")
        box("cp", "other:/x", tmp_path / "copy").succeeded()
        assert snapshot(tmp_path / "copy") == snapshot(tmp_path / "source")
        assert box("ls", "-q", "--running").succeeded().text == "box\n"
    finally:
        box("rm", "--force", "other").succeeded()


def test_every_mistake_is_one_line_that_names_it(box: Msb, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    for source, destination, code, message in (
        ("box:/nope", tmp_path, 1, "box:/nope: no such file or directory"),
        (tmp_path / "nope", "box:/tmp", 1, f"{tmp_path}/nope: no such file or directory"),
        (tmp_path / "f", "box:/no/where", 1, "box:/no: no such file or directory"),
        (tmp_path / "f", "box:/no/", 1, "box:/no/: no such file or directory"),
        (tmp_path / "d", "box:/etc/passwd", 1, "box:/etc/passwd: not a directory"),
        (tmp_path / "f", "box:/dev/null", 1, "box:/dev/null: is a device"),
        ("box:/dev/zero", tmp_path / "x", 1, "box:/dev/zero: is a device"),
        ("box:/etc/passwd", tmp_path / "no" / "x", 1, f"{tmp_path}/no: no such directory"),
        ("box:/etc", tmp_path / "f", 1, f"{tmp_path}/f: is not a directory"),
        ("nobody:/etc", tmp_path / "x", 125, "no sandbox named 'nobody'"),
        ("box:etc", tmp_path / "x", 2, "has to be absolute"),
        ("a", "b", 2, "neither path is in a sandbox"),
        (":/a", "b", 2, "no sandbox is named"),
    ):
        assert message in box("cp", source, destination).failed(code)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "f"]
    assert shell(box, "ls -A /tmp; ls -l /dev/null | cut -c1") == b"c\n"


def test_a_directory_that_cannot_be_written_is_named(box: Msb, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert "box:/proc/f: " in box("cp", tmp_path / "f", "box:/proc").failed(1)
    shell(box, "mkdir /ro; mount -t tmpfs -o ro none /ro")
    assert "box:/ro/f: read-only file system" in box("cp", tmp_path / "f", "box:/ro").failed(1)


def test_a_disk_that_is_full_is_said_and_keeps_what_was_there(box: Msb, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(random.Random(1).randbytes(3 * MIB))
    shell(box, "mkdir /small; mount -t tmpfs -o size=1m none /small; echo old >/small/f")
    assert "box:/small/f: no space left on device" in box("cp", tmp_path / "f", "box:/small").failed(1)
    assert shell(box, "ls -A /small; cat /small/f") == b"f\nold\n"


def test_special_files_and_the_kernels_are_skipped(box: Msb, tmp_path: Path) -> None:
    shell(box, "mkdir /src /src/proc; mkfifo /src/fifo; echo x >/src/f; mount -t proc none /src/proc")
    done = box("cp", "box:/src", tmp_path / "copy").succeeded()
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*")) == ["f"]
    assert done.complaint.startswith("note: not copied")
    assert all(name in done.complaint for name in ("fifo", "proc"))


@pytest.mark.slow
def test_two_thousand_files_both_ways(box: Msb, tmp_path: Path) -> None:
    source = tmp_path / "source"
    numbers = random.Random(3)
    for directory in range(20):
        (source / f"d{directory}").mkdir(parents=True)
        for number in range(100):
            content = numbers.randbytes(numbers.randrange(4000))
            (source / f"d{directory}" / f"f{number}").write_bytes(content)
    box("cp", source, "box:/srv").succeeded()
    assert shell(box, "find /srv -type f | wc -l").strip() == b"2000"
    box("cp", "box:/srv", tmp_path / "copy").succeeded()
    assert snapshot(tmp_path / "copy") == snapshot(source)


@pytest.mark.slow
@pytest.mark.once
def test_200_mb_both_ways_in_constant_memory(msb: Msb, host: Host, tmp_path: Path) -> None:
    size, digest = 200 * MIB, hashlib.sha256()
    numbers = random.Random(5)
    with (tmp_path / "big").open("wb") as big:
        for _ in range(size // MIB):
            chunk = numbers.randbytes(MIB)
            digest.update(chunk)
            big.write(chunk)
    msb("create", "busybox", "--name", "box", "-m", "128M").succeeded()
    try:
        running = host.sandbox()
        agentd = "grep VmHWM /proc/1/status | tr -dc 0-9"
        before, inside = running.supervisor.peak_memory, int(shell(msb, agentd))
        program = _peak_of(msb, "cp", tmp_path / "big", "box:/big")
        assert shell(msb, "sha256sum </big").split()[0].decode() == digest.hexdigest()
        program = max(program, _peak_of(msb, "cp", "box:/big", tmp_path / "copy"))
        with (tmp_path / "copy").open("rb") as copied:
            assert hashlib.file_digest(copied, "sha256").hexdigest() == digest.hexdigest()
        assert 0 < program < 100 * MIB
        assert running.supervisor.peak_memory - before < GROWTH
        assert (int(shell(msb, agentd)) - inside) * 1024 < 8 * MIB
    finally:
        msb("rm", "--force", "box").succeeded()


def _peak_of(msb: Msb, *arguments: str | Path) -> int:
    """The most memory that the command has had, in bytes, as long as it was looked at. It has to succeed."""
    # Not by wait4(2), which counts in what this process had when it forked.
    peak = 0
    with msb.start(*arguments) as running:
        while True:
            try:
                running.process.wait(0.2)
                break
            except subprocess.TimeoutExpired:
                with suppress(KeyError):  # it has just ended, and has no memory any more
                    peak = max(peak, running.host_process.peak_memory)
        running.finish().succeeded()
    return peak


def test_offsets_beyond_four_gigabytes(box: Msb, tmp_path: Path) -> None:
    end = 5 << 30
    with (tmp_path / "large").open("wb") as large:
        large.write(b"first")
        large.seek(end)
        large.write(b"last")
    box("cp", tmp_path / "large", "box:/large").succeeded()
    assert shell(box, "stat -c %s /large; tail -c 4 /large").split() == [b"%d" % (end + 4), b"last"]
    box("cp", "box:/large", tmp_path / "copy").succeeded()
    assert (tmp_path / "copy").stat().st_blocks < 1000
    with (tmp_path / "copy").open("rb") as copied:
        assert copied.read(5) == b"first"
        copied.seek(end - 1)
        assert copied.read() == b"\0last"


def test_a_copy_that_is_interrupted_leaves_nothing(box: Msb, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(1 << 20) + random.Random(2).randbytes(64 * MIB))
    shell(box, "echo old >/big; mkfifo /go")
    # Who looks is there before it begins: afterwards it might be over by then.
    look = "echo up; until ls -A / | grep -q '^[.]msb-'; do :; done; echo begun"
    with box.start("exec", "box", "--", "sh", "-c", look) as looking:
        assert looking.line() == b"up\n"
        running = box.start("cp", tmp_path / "big", "box:/big")
        # It has begun when its file is there.
        assert looking.line() == b"begun\n"
    with running:
        running.process.send_signal(2)
        assert running.process.wait(timeout=120) == 130
    assert shell(box, "cat /big; ls -A / | grep msb-; true") == b"old\n"


def test_progress_is_shown_on_a_terminal(box: Msb, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(random.Random(2).randbytes(48 * MIB))
    done = box("cp", tmp_path / "big", "box:/big").succeeded()
    assert done.err == b""  # not a terminal
    with Terminal([PROGRAM, "cp", tmp_path / "big", "box:/big"], box.environ) as terminal:
        terminal.read_until(b"copying: ")
        assert terminal.finish().code == 0


# -------------------------------------------------------------------------------------------- Sandbox.fs


@pytest_asyncio.fixture
async def sandbox(
    msb: Msb, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sandbox]:
    for name, value in {"MSB_HOME": str(msb.home), **settings}.items():
        monkeypatch.setenv(name, value)
    async with await Sandbox.create(image="busybox", memory="128M") as created:
        yield created


@pytest.mark.asyncio
async def test_content_is_read_and_written(sandbox: Sandbox) -> None:
    fs = sandbox.fs
    data = bytes(range(256)) * 1000
    await fs.write("/tmp/data", data)
    assert await fs.read("/tmp/data") == data
    await fs.write("/tmp/text", "ünïcode\n")
    assert await fs.read_text("/tmp/text") == "ünïcode\n"
    await fs.write("/tmp/text", b"")
    assert await fs.read("/tmp/text") == b""
    await fs.chmod("/tmp/text", 0o4600)
    await fs.chown("/tmp/text", 12, 34)
    await fs.write("/tmp/text", "kept")
    facts = await fs.stat("/tmp/text")
    assert (facts.kind, facts.size, facts.uid, facts.gid, facts.mode & 0o777) == (
        FileKind.FILE,
        4,
        12,
        34,
        0o600,
    )
    with pytest.raises(FilesystemError, match="more than 100 bytes"):
        await fs.read("/tmp/data", limit=100)
    assert (await fs.read("/proc/version")).startswith(b"Linux")
    await sandbox.shell("ln -s /tmp/text /tmp/link; mkfifo /tmp/fifo")
    await fs.write("/tmp/link", "through it")
    assert await fs.read_text("/tmp/text") == "through it"
    for path in ("/tmp", "/tmp/fifo", "/dev/zero"):
        with pytest.raises(FilesystemError, match=path):
            await fs.read(path)
        with pytest.raises(FilesystemError, match=path):
            await fs.write(path, b"x")
    with pytest.raises(ValueError, match="absolute"):
        await fs.read("tmp")


@pytest.mark.asyncio
async def test_the_tree_is_seen_and_changed(sandbox: Sandbox) -> None:
    fs = sandbox.fs
    await fs.mkdir("/a/b/c", parents=True)
    await fs.mkdir("/a/b/c", parents=True)
    with pytest.raises(FilesystemError) as caught:
        await fs.mkdir("/a/b")
    assert caught.value.code == "path_exists"
    await fs.write("/a/f", b"12345")
    await sandbox.shell("ln -s /nowhere /a/l; touch -d @981173106 /a/f; touch \"/a/$(printf 'x\\ny\\377')\"")
    listed = await fs.list("/a")
    assert [(info.name, info.kind) for info in listed] == [
        ("b", FileKind.DIRECTORY),
        ("f", FileKind.FILE),
        ("l", FileKind.SYMLINK),
        (os.fsdecode(b"x\ny\xff"), FileKind.FILE),
    ]
    assert (listed[1].path, listed[1].size, listed[1].modified.timestamp()) == ("/a/f", 5, 981173106)
    assert listed[2].target == "/nowhere"
    assert not await fs.exists("/a/l")
    assert (await fs.stat("/a/l", follow_symlinks=False)).target == "/nowhere"
    await fs.rename("/a/f", "/a/g")
    assert [await fs.exists(path) for path in ("/a/f", "/a/g")] == [False, True]
    await fs.copy("/a", "/z")
    assert await fs.read("/z/g") == b"12345"
    await fs.remove("/a/g")
    with pytest.raises(FilesystemError) as caught:
        await fs.remove("/a")
    assert caught.value.code == "not_empty"
    await fs.remove_dir("/a")
    assert not await fs.exists("/a")
    for path in ("/a", "/a/b"):
        for call in (fs.remove, fs.remove_dir, fs.stat, fs.list, fs.read):
            with pytest.raises(PathNotFound, match=f":{path}: "):
                await call(path)
    for path in ("/", "/..", "/z/.."):  # F28
        with pytest.raises(FilesystemError):
            await fs.remove_dir(path)
    assert await fs.exists("/bin/sh")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_ten_thousand_entries_are_listed(sandbox: Sandbox) -> None:
    await sandbox.shell("mkdir /many; cd /many; seq 10000 | xargs touch")
    assert len(await sandbox.fs.list("/many")) == 10_000


@pytest.mark.asyncio
async def test_a_stream_that_is_given_up_changes_nothing(sandbox: Sandbox) -> None:
    fs = sandbox.fs
    await fs.write("/f", "old")

    async def give_up() -> None:
        async with fs.write_stream("/f") as sink:
            await sink.write(bytes(3 * MIB))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await give_up()
    assert await fs.read_text("/f") == "old"
    assert [info.name for info in await fs.list("/") if info.name.startswith(".msb-")] == []
    await sandbox.shell("head -c 20000000 /dev/zero >/big")
    async for piece in fs.read_stream("/big"):
        assert piece
        break
    assert await fs.read_text("/f") == "old"


@pytest.mark.asyncio
async def test_many_operations_at_once(sandbox: Sandbox) -> None:
    contents = {f"/tmp/f{number}": random.Random(number).randbytes(200_000) for number in range(30)}
    await asyncio.gather(*(sandbox.fs.write(path, data) for path, data in contents.items()))
    found = await asyncio.gather(*(sandbox.fs.read(path) for path in contents))
    assert found == list(contents.values())


@pytest.mark.asyncio
async def test_a_sandbox_that_stops_is_said(sandbox: Sandbox) -> None:
    await sandbox.kill()
    with pytest.raises(NotRunning):
        await sandbox.fs.read("/etc/passwd")
