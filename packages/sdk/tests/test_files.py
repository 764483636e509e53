"""Trees of files as streams: unchanged by the way, and from a hostile guest nowhere but where they belong."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox.errors import FilesystemError, PathNotFound
from microsandbox.files._copy import guest_path, source_name
from microsandbox.files._extract import DEPTH_MAX, CopyResult, Extractor, resolve
from microsandbox.files._pack import pack
from microsandbox.files._records import (
    BYTES_MAX,
    Entry,
    Parser,
    StreamInvalid,
    encode_content,
    encode_entry,
    encode_hole,
    encode_mark,
    is_name,
)

UP, END_FILE, END = (encode_mark(kind) for kind in (b"U", b"E", b"Z"))
TYPES = {b"D": stat.S_IFDIR, b"F": stat.S_IFREG, b"L": stat.S_IFLNK, b"S": stat.S_IFIFO}


def entry(kind: bytes, name: bytes = b"", *, size: int = 0, mode: int = 0o755, target: bytes = b"") -> bytes:
    return encode_entry(Entry(kind, TYPES[kind] | mode, 1_000_000_000, 5, size, 0, 0, name, target))


def file(name: bytes, content: bytes = b"x", *, mode: int = 0o644) -> bytes:
    body = encode_content(content) if content else b""
    return entry(b"F", name, size=len(content), mode=mode) + body + END_FILE


def link(name: bytes, target: bytes) -> bytes:
    return entry(b"L", name, target=target)


def extract(
    destination: Path | str, *stream: bytes, name: bytes | None = b"source", step: int = 1 << 20
) -> None:
    extractor = Extractor(destination, name)
    data = b"".join(stream)
    try:
        for offset in range(0, len(data), step):
            extractor.feed(data[offset : offset + step])
        assert extractor.complete
    finally:
        extractor.close()


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        facts = path.lstat()
        content = b""
        if path.is_symlink():
            content = bytes(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = (facts.st_mode, facts.st_mtime_ns, content)
    return found


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = len(names(Path("/proc/self/fd")))
    yield
    assert len(names(Path("/proc/self/fd"))) == before


# ----------------------------------------------------------------------------------------------- both ways


def make_tree(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "file").write_bytes(b"content")
    (root / "deep" / "file").chmod(0o751)
    (root / "empty").touch()
    (root / "two\nlines \x1b[31m").write_text("name")
    (root / os.fsdecode(b"\xff\xfe")).write_text("no UTF-8")
    (root / "link").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("no/where")
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(32 << 20)
        sparse.write(b"middle")
        sparse.truncate(64 << 20)
    os.link(root / "deep" / "file", root / "hard link")
    for path in (root / "deep" / "file", root / "deep" / "er", root / "deep"):
        os.utime(path, ns=(1, 981_173_106_123_456_789))


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
def test_a_tree_comes_out_as_it_went_in(tmp_path: Path, step: int) -> None:
    source = tmp_path / "source"
    make_tree(source)
    counted = CopyResult()
    with no_descriptor_left():
        stream = b"".join(pack(source, counted))
        extract(tmp_path / "copy", stream, step=step)
    assert len(stream) < 1 << 20  # holes are not sent
    assert snapshot(tmp_path / "copy") == snapshot(source)
    assert (tmp_path / "copy" / "sparse").stat().st_blocks < 1000
    assert (counted.entries, counted.skipped) == (11, 0)


def test_special_files_are_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "fifo")
    counted = CopyResult()
    extract(tmp_path / "copy", *pack(tmp_path / "source", counted))
    assert (counted.skipped, counted.skipped_names) == (1, [str(tmp_path / "source" / "fifo")])
    assert names(tmp_path / "copy") == []
    with pytest.raises(FilesystemError, match="FIFO"):
        list(pack(tmp_path / "source" / "fifo", counted))


def test_special_bits_are_dropped_unless_asked_for(tmp_path: Path) -> None:
    stream = file(b"", mode=0o6755) + END
    extract(tmp_path / "dropped", stream)
    assert stat.S_IMODE((tmp_path / "dropped").stat().st_mode) == 0o755
    extractor = Extractor(tmp_path / "kept", b"source", special_bits=True)
    extractor.feed(stream)
    extractor.close()
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o6755


@pytest.mark.parametrize(
    ("destination", "is_directory", "name", "wanted"),
    [
        ("there", True, b"s", ("there", b"s")),
        ("there", False, b"s", ("there", b"s")),
        ("there/", False, b"s", ("there/", b"s")),
        ("there", True, None, ("there", None)),
        ("there", False, None, FilesystemError),
        ("new", True, b"s", ("", b"new")),
        ("new", True, None, ("", b"new")),
        ("new/", True, b"s", ("", b"new")),
        ("new/", False, b"s", PathNotFound),
        ("none/new", False, b"s", PathNotFound),
        ("file", False, b"s", ("", b"file")),
        ("file", True, b"s", FilesystemError),
        ("file/", False, b"s", FilesystemError),
        ("file/new", False, b"s", FilesystemError),
        ("to there", True, b"s", ("to there", b"s")),
        ("to file", False, b"s", ("", b"file")),
        ("fifo", False, b"s", FilesystemError),
        ("", False, b"s", PathNotFound),
    ],
)
def test_destinations_mean_what_they_mean_to_cp(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    destination: str,
    is_directory: bool,
    name: bytes | None,
    wanted: tuple[str, bytes | None] | type[FilesystemError],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").touch()
    Path("to there").symlink_to("there")
    Path("to file").symlink_to("file")
    os.mkfifo("fifo")
    if isinstance(wanted, type):
        with pytest.raises(wanted):
            resolve(destination, name, is_directory=is_directory)
        return
    directory, found = resolve(destination, name, is_directory=is_directory)
    assert (os.path.realpath(directory), found) == (os.path.realpath(wanted[0]), wanted[1])


def test_names_of_sources() -> None:
    wanted = {
        "a": b"a",
        "/a/b/": b"b",
        "/": None,
        ".": None,
        "a/.": None,
        "a/./": None,
        "..": None,
        "a/..": None,
    }
    assert {path: source_name(path) for path in wanted} == wanted
    assert guest_path("/a") == b"/a"
    for path in ("a", "", "/a\0"):
        with pytest.raises(ValueError, match="path"):
            guest_path(path)


# ------------------------------------------------------------------------------------------ hostile streams


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"/etc/x", b"../x", b"a\0", b"x" * 256])
@pytest.mark.parametrize("kind", [b"D", b"F", b"L"])
def test_a_name_is_one_component(tmp_path: Path, kind: bytes, name: bytes) -> None:
    # F29, O01
    with pytest.raises(FilesystemError) as caught:
        extract(tmp_path / "copy", entry(b"D"), entry(kind, name, target=b"t" if kind == b"L" else b""))
    assert caught.value.code == "invalid_stream"
    assert [path.name for path in tmp_path.rglob("*")] == ["copy"]


@pytest.mark.parametrize(
    "attack",
    [
        link(b"x", b"../outside") + entry(b"D", b"x") + file(b"pwned"),
        link(b"x", b"../outside/kept") + file(b"x"),
        link(b"x", b"../outside/new") + file(b"x"),
        entry(b"D", b"x") + UP + link(b"x", b"../outside") + entry(b"D", b"x") + file(b"pwned"),
        entry(b"D", b"x") + link(b"y", b"../../outside") + entry(b"D", b"y") + file(b"pwned"),
        file(b"x") + link(b"x", b"../outside") + entry(b"D", b"x") + file(b"pwned"),
    ],
)
def test_a_planted_link_is_not_followed(tmp_path: Path, attack: bytes) -> None:
    # F29
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("as it was")
    before = snapshot(tmp_path / "outside")
    with no_descriptor_left(), suppress(FilesystemError):
        extract(tmp_path / "copy", entry(b"D"), attack, UP, UP, END)
    assert snapshot(tmp_path / "outside") == before
    assert list(tmp_path.rglob(".msb-*")) == []


def test_a_link_of_the_users_below_the_destination_is_not_followed_either(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "x").symlink_to("../outside")
    with pytest.raises(FilesystemError, match="copy/x"):
        extract(tmp_path / "copy", entry(b"D"), entry(b"D", b"x"), file(b"f"), UP, UP, END, name=None)
    assert names(tmp_path / "outside") == []


@pytest.mark.parametrize(
    "stream",
    [
        END,
        UP,
        END_FILE,
        encode_content(b"x"),
        encode_hole(1),
        entry(b"S"),
        entry(b"D", b"named"),
        entry(b"D") + END,
        entry(b"D") + entry(b"D"),
        entry(b"D") + file(b""),
        entry(b"D") + UP + UP,
        entry(b"D") + UP + file(b"second"),
        entry(b"D") + UP + END + END,
        entry(b"D") + END_FILE,
        entry(b"F", size=1) + encode_content(b"xy"),
        entry(b"F", size=1) + encode_hole(2),
        entry(b"F", size=2**63 - 1) + encode_hole(2**63 - 1) + encode_content(b"x"),
        entry(b"F", size=2**63),
        entry(b"F", size=1) + UP,
        entry(b"F", size=1) + END,
        entry(b"F", size=1) + entry(b"F", b"x"),
        entry(b"L"),
        entry(b"L", target=b"a\0b"),
        entry(b"L", target=b"x" * 4096),
        b"X\0\0\0\0",
        b"D\xff\xff\xff\xff",
        b"B\0\0\0\0",
        b"B" + (BYTES_MAX + 1).to_bytes(4, "big"),
        b"U\0\0\0\1x",
    ],
)
def test_what_is_no_tree_is_refused(tmp_path: Path, stream: bytes) -> None:
    with no_descriptor_left(), pytest.raises(FilesystemError) as caught:
        extract(tmp_path / "copy", stream)
    assert caught.value.code == "invalid_stream"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_cannot_be_that_large_is_an_error_and_gone(tmp_path: Path) -> None:
    huge = entry(b"F", size=2**63 - 1) + encode_hole(2**63 - 1) + END_FILE + END
    with pytest.raises(FilesystemError):
        extract(tmp_path / "copy", huge)
    assert names(tmp_path) == []


def test_a_stream_that_stops_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("old")
    extractor = Extractor(tmp_path / "copy", b"source")
    extractor.feed(entry(b"F", size=5) + encode_content(b"new"))
    assert len(names(tmp_path)) == 2
    extractor.close()
    assert names(tmp_path) == ["copy"]
    assert (tmp_path / "copy").read_text() == "old"


def test_a_tree_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    with no_descriptor_left(), pytest.raises(FilesystemError) as caught:
        extract(tmp_path / "copy", entry(b"D"), *[entry(b"D", b"d") for _ in range(DEPTH_MAX + 10)])
    assert caught.value.code == "too_deep"
    deep = tmp_path / "deep"
    path = deep
    for _ in range(DEPTH_MAX + 2):
        path.mkdir()
        path = path / "d"
    with no_descriptor_left(), pytest.raises(FilesystemError):
        list(pack(deep, CopyResult()))


def test_times_beyond_all_calendars_do_no_harm(tmp_path: Path) -> None:
    for seconds in (-(2**63), 2**63 - 1):
        odd = encode_entry(Entry(b"F", 0o100644, seconds, 0, 0, 0, 0, b""))
        extract(tmp_path / "copy", odd, END_FILE, END)
        assert (tmp_path / "copy").is_file()


NAMES = st.sampled_from([b"", b"a", b"b", b"c", b"..", b".", b"a/b", b"/etc", b".msb-", b"\xff", b"n\nl"])
TARGETS = st.sampled_from([b"a", b"b", b"..", b"../outside", b"../../outside", b"/", b"../outside/kept"])
RECORDS = st.one_of(
    st.builds(lambda name: entry(b"D", name), NAMES),
    st.builds(lambda name, content: file(name, content), NAMES, st.binary(max_size=20)),
    st.builds(lambda name, size: entry(b"F", name, size=size), NAMES, st.integers(0, 2**40)),
    st.builds(link, NAMES, TARGETS),
    st.builds(lambda name: entry(b"S", name), NAMES),
    st.sampled_from([UP, UP, UP, END_FILE, END, encode_content(b"data"), encode_hole(3)]),
    st.binary(max_size=8),
)


@settings(deadline=None, max_examples=400)
@given(st.lists(RECORDS, max_size=25), st.booleans(), st.integers(1, 100))
def test_no_stream_reaches_beyond_the_destination(records: list[bytes], into: bool, step: int) -> None:
    # F29, O01, O02: whatever is sent, only what is below the destination changes.
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "outside").mkdir()
        (root / "outside" / "kept").write_text("as it was")
        (root / "copy").mkdir()
        before = snapshot(root / "outside")
        extractor = Extractor(root / "copy", None if into else b"source")
        data = entry(b"D") + b"".join(records)
        with no_descriptor_left():
            try:
                for offset in range(0, len(data), step):
                    extractor.feed(data[offset : offset + step])
            except FilesystemError:
                pass
            finally:
                extractor.close()
        assert snapshot(root / "outside") == before
        assert names(root) == ["copy", "outside"]
        assert into or set(names(root / "copy")) <= {"source"}
        left = [path for path in (root / "copy").rglob(".msb-*") if len(path.name) > len(".msb-")]
        assert not left


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_make_the_parser_do_more_than_refuse(data: bytes, step: int) -> None:
    parser = Parser()
    with suppress(StreamInvalid):
        for offset in range(0, len(data), step):
            for record in parser.feed(data[offset : offset + step]):
                assert not isinstance(record, Entry) or not record.name or is_name(record.name)
