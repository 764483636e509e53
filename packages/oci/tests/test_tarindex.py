"""The table of contents of image archives: equal to tarfile's on good ones, an error on all others."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox_oci import ArchiveInvalid, LimitExceeded
from microsandbox_oci._tarindex import TarIndex


def scan(data: bytes, *, max_entries: int = 1000) -> tuple[TarIndex, int]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the interpreter with the descriptor's duplicate
    with file:
        file.write(data)
        file.flush()
        fd = os.dup(file.fileno())
    try:
        return TarIndex.scan(fd, max_entries=max_entries), fd
    except BaseException:
        os.close(fd)
        raise


def read(data: bytes, name: str) -> bytes | None:
    index, fd = scan(data)
    try:
        entry = index.find(name)
        return None if entry is None else os.pread(fd, entry.size, entry.offset)
    finally:
        os.close(fd)


def tar(entries: list[tarfile.TarInfo | tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(
    files=st.dictionaries(st.from_regex(r"[a-z0-9]{1,40}(/[a-z0-9]{1,40}){0,2}", fullmatch=True), st.binary())
)
@settings(max_examples=50)
def test_finds_what_tarfile_wrote(kind: int, files: dict[str, bytes]) -> None:
    data = tar(list(files.items()), kind)
    if not files:
        return
    for name, content in files.items():
        assert read(data, name) == content
        assert read(data, "./" + name) == content
    assert read(data, "not/there") is None


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_non_ascii_ones(kind: int) -> None:
    name = "d" * 120 + "/" + "ü" * 120
    assert read(tar([(name, b"x")], kind), name) == b"x"


def test_links_are_followed_inside_the_archive_only() -> None:
    data = tar(
        [
            ("one/layer.tar", b"content"),
            link("two/layer.tar", "../one/layer.tar"),
            link("three/layer.tar", "one/layer.tar", tarfile.LNKTYPE),
            link("out", "../../etc/passwd"),
            link("absolute", "/etc/passwd"),
            link("loop", "loop"),
        ]
    )
    assert read(data, "two/layer.tar") == b"content"
    assert read(data, "three/layer.tar") == b"content"
    for name in ("out", "absolute", "loop", "../one/layer.tar"):
        assert read(data, name) is None


def test_the_later_of_two_entries_counts() -> None:
    assert read(tar([("a", b"1"), ("a", b"22")]), "a") == b"22"


def test_o09_an_archive_that_is_cut_off_is_refused() -> None:
    data = tar([("a", b"x" * 5000)])
    for end in (512 + 100, 512 + 4999):
        with pytest.raises(ArchiveInvalid, match="cut off"):
            scan(data[:end])
    with pytest.raises(ArchiveInvalid, match="not a tar"):
        scan(b"")
    with pytest.raises(ArchiveInvalid, match="not a tar"):
        scan(b"PK\x03\x04" + b"x" * 2000)


def test_o09_impossible_sizes_are_refused() -> None:
    data = bytearray(tar([("a", b"x")], tarfile.USTAR_FORMAT))
    for field in (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-0000000001\0", b"77777777777\0"):
        header = data[:512]
        header[124:136] = field
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        with pytest.raises(ArchiveInvalid):
            scan(bytes(header) + bytes(data[512:]))


def test_o09_a_gigabyte_long_name_is_refused_unread() -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with pytest.raises(LimitExceeded):
        scan(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024)


def test_o09_the_number_of_entries_is_bounded() -> None:
    data = tar([(str(number), b"") for number in range(20)])
    with pytest.raises(LimitExceeded):
        scan(data, max_entries=19)
    _, fd = scan(data, max_entries=20)
    os.close(fd)


@pytest.mark.parametrize(
    "record", [b"9999 path=x\n", b"x path=x\n", b"9 path=xx", b"0 path=a\n", b"12 size=abc\n"]
)
def test_o09_malformed_pax_records_are_refused(record: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    body = tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(ArchiveInvalid):
        scan(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + body + bytes(1024))


@given(st.data())
@settings(max_examples=200)
def test_any_damage_is_an_answer_or_a_typed_error(data: st.DataObject) -> None:
    whole = bytearray(tar([("one", b"1" * 700), ("t" * 150, b"2"), link("l", "one")], tarfile.PAX_FORMAT))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        _, fd = scan(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except (ArchiveInvalid, LimitExceeded):
        return
    os.close(fd)


def test_a_path_that_is_no_tar_is_named(tmp_path: Path) -> None:
    from microsandbox_oci import ImageStore

    path = tmp_path / "notes.txt"
    path.write_text("hello" * 500)
    with pytest.raises(ArchiveInvalid, match=r"notes\.txt"):
        ImageStore(tmp_path / "store").load(str(path))
