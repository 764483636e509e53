"""A disk image is one file that nobody else writes to, whatever its first bytes say."""

import os
import random
import struct
from pathlib import Path

import pytest
from microsandbox_core.disk_image import format_of, open_image, qcow2_size
from microsandbox_core.errors import DiskInUse, DiskRefused

HERE = Path("image")


def header(
    *,
    version: int = 3,
    backing: int = 0,
    backing_length: int = 0,
    cluster_bits: int = 16,
    size: int = 1 << 30,
    encryption: int = 0,
    incompatible: int = 0,
    cleared: int = 0,
    length: int = 104,
    extensions: bytes = bytes(8),
) -> bytes:
    first = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing, backing_length, cluster_bits, size, encryption,
        1, 0x30000, 0x10000, 1, 0, 0,
    )  # fmt: skip
    if version == 3:
        first += struct.pack(">QQQII", incompatible, 0, cleared, 4, length)
        first += bytes(length - len(first))
    return (first + extensions).ljust(4096, b"\0")


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def test_a_plain_qcow2_is_taken() -> None:
    assert qcow2_size(header(), HERE) == 1 << 30
    assert qcow2_size(header(version=2), HERE) == 1 << 30
    # Dirty, another compression, extended entries; a table of features' names.
    names = extension(0x6803F857, b"x" * 48) + bytes(8)
    assert qcow2_size(header(incompatible=0b11001, length=112, extensions=names), HERE) == 1 << 30


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (header(backing=512, backing_length=11), "backing file"),
        (header(version=2, backing=512, backing_length=11), "backing file"),
        # A name without a length, and a length without a name: nobody says what QEMU makes of them.
        (header(backing=512), "backing file"),
        (header(backing_length=11), "backing file"),
        (header(incompatible=0b100), "data is in another file"),
        (header(cleared=0b10), "data is in another file"),
        (header(extensions=extension(0x44415441, b"/etc/shadow")), "another file"),
        (header(version=2, extensions=extension(0x44415441, b"/etc/shadow")), "another file"),
        (header(encryption=1), "encrypted"),
        (header(incompatible=0b10), "corrupt"),
        (header(incompatible=1 << 63), "not known"),
        (header(version=1), "version 1"),
        (header(version=4), "version 4"),
        (header(cluster_bits=8), "damaged"),
        (header(cluster_bits=22), "damaged"),
        (header()[:71], "damaged"),
        (header()[:103], "damaged"),
        # Extensions that go on where nobody has looked, or say that they do.
        (header(extensions=struct.pack(">II", 1, 0xFFFFFFFF)), "damaged"),
        (header(extensions=extension(1, bytes(5000))), "damaged"),
        (header(length=0x7FFFFFF8 % 4096, extensions=b"\1" * 8)[:4096], "damaged"),
    ],
)
def test_what_leads_to_other_files_or_is_not_understood_is_refused(first: bytes, reason: str) -> None:
    with pytest.raises(DiskRefused, match=reason):
        qcow2_size(first, HERE)


def test_header_lengths_that_lie_are_refused() -> None:
    for length in (0, 72, 100, 105, 1 << 31):
        first = bytearray(header())
        first[100:104] = struct.pack(">I", length)
        with pytest.raises(DiskRefused, match="damaged"):
            qcow2_size(bytes(first), HERE)


def test_no_bytes_end_in_another_way() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        first = bytearray(header(extensions=extension(1, b"x" * 24) + bytes(8)))
        for _ in range(chance.randrange(1, 6)):
            first[chance.randrange(4, 160)] = chance.randrange(256)
        try:
            qcow2_size(bytes(first[: chance.randrange(4, 4096)]), HERE)
        except DiskRefused:
            pass


def test_the_format_is_what_the_file_begins_with_unless_it_is_said(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    assert format_of(image) == "raw"
    image.write_bytes(header())
    assert format_of(image) == "qcow2"
    # A guest has written a header to its raw disk.
    image.write_bytes(header(backing=512, backing_length=11))
    assert format_of(image, "raw") == "raw"
    with pytest.raises(DiskRefused, match="backing file"):
        format_of(image)
    with pytest.raises(DiskRefused, match="format"):
        format_of(image, "vmdk")


def test_one_writer_or_many_readers(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    writer = open_image(image, read_only=False)
    assert (writer.size, writer.format) == (4096, "raw")
    for read_only in (False, True):
        with pytest.raises(DiskInUse, match=str(image)):
            open_image(image, read_only=read_only)
    # Whoever has inherited it holds it.
    inherited = os.dup(writer.descriptor)
    writer.close()
    with pytest.raises(DiskInUse):
        open_image(image, read_only=True)
    os.close(inherited)
    readers = [open_image(image, read_only=True) for _ in range(3)]
    with pytest.raises(DiskInUse):
        open_image(image, read_only=False)
    for reader in readers:
        reader.close()
    open_image(image, read_only=False).close()


def test_only_regular_files_of_a_disks_size(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(DiskRefused, match="regular file"):
        open_image(fifo, read_only=True)
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(DiskRefused):
            open_image(path, read_only=True)
    with pytest.raises(DiskRefused, match="No such file"):
        open_image(tmp_path / "missing", read_only=True)
    image = tmp_path / "disk"
    for size in (0, 511, 4097):
        image.write_bytes(bytes(size))
        with pytest.raises(DiskRefused, match=f"{size} bytes"):
            open_image(image, read_only=True)
    image.write_bytes(header(size=9 << 40))
    with pytest.raises(DiskRefused, match=f"{9 << 40} bytes"):
        open_image(image, read_only=True)
