"""The kernel file: wrapped right, made once, checked on reuse."""

import struct
from pathlib import Path

import pytest
from microsandbox_core import env
from microsandbox_core.errors import KernelError
from microsandbox_core.kernel import KernelImage, ensure_kernel, wrap_pvh_elf

NOTE = struct.pack("<III", 4, 8, 18) + b"Xen\0" + struct.pack("<Q", 0x1000000)
LIBRARY = """
static char image[] __attribute__((aligned(4096))) = {%s};
char *krunfw_get_kernel(unsigned long *load, unsigned long *entry, unsigned long *size) {
    *load = 0x1000000; *entry = 0x1000123; *size = sizeof image; return image;
}
"""


def make_library(directory: Path, data: bytes) -> Path:
    """A shared library with libkrunfw's interface and `data` for a kernel."""
    import subprocess

    source = directory / "krunfw.c"
    source.write_text(LIBRARY % ",".join(str(byte if byte < 128 else byte - 256) for byte in data))
    library = directory / "libkrunfw.so.5"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def test_the_elf_has_one_load_segment_and_the_note_inside_it() -> None:
    data = b"\x90" * 100 + NOTE + b"\xcc" * 50
    elf = wrap_pvh_elf(KernelImage(0x1000000, 0x1000123, data))
    assert elf[:6] == b"\x7fELF\x02\x01"
    machine, entry, table, count = (
        struct.unpack_from("<H", elf, 18)[0],
        struct.unpack_from("<Q", elf, 24)[0],
        struct.unpack_from("<Q", elf, 32)[0],
        struct.unpack_from("<H", elf, 56)[0],
    )
    assert (machine, entry, table, count) == (62, 0x1000123, 64, 2)
    load = struct.unpack_from("<IIQQQQQQ", elf, 64)
    note = struct.unpack_from("<IIQQQQQQ", elf, 120)
    assert load[0] == 1
    assert elf[load[2] : load[2] + load[5]] == data
    assert load[3] == 0x1000000
    assert note[0] == 4
    assert elf[note[2] : note[2] + note[5]] == NOTE
    assert note[3] == 0x1000000 + 100


@pytest.mark.parametrize("data", [b"", b"Xen\0", b"\0" * 64, b"junk" * 20 + b"Xen\0" + b"\0" * 8])
def test_a_kernel_without_its_note_is_refused(data: bytes) -> None:
    with pytest.raises(KernelError, match="PVH"):
        wrap_pvh_elf(KernelImage(0x1000000, 0x1000123, data))


def test_the_kernel_is_made_once_and_made_again_when_damaged(tmp_path: Path) -> None:
    library = make_library(tmp_path, b"\x90" * 5000 + NOTE)
    first = ensure_kernel(tmp_path / "home", library=library)
    made = first.path.stat()
    assert ensure_kernel(tmp_path / "home", library=library) == first
    assert first.path.stat().st_ino == made.st_ino

    first.path.chmod(0o600)
    content = bytearray(first.path.read_bytes())
    content[5000] ^= 1
    first.path.write_bytes(content)
    again = ensure_kernel(tmp_path / "home", library=library)
    assert again == first
    assert again.path.read_bytes() != bytes(content)


def test_another_library_gives_another_kernel(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = ensure_kernel(tmp_path, library=make_library(tmp_path / "one", b"\x90" + b"\0" * 3 + NOTE))
    two = ensure_kernel(tmp_path, library=make_library(tmp_path / "two", b"\x91" + b"\0" * 3 + NOTE))
    assert one.digest != two.digest
    assert one.path.exists()
    assert two.path.exists()


def test_what_is_not_a_libkrunfw_is_named(tmp_path: Path) -> None:
    library = tmp_path / "libkrunfw.so.5"
    library.write_bytes(b"not a library")
    with pytest.raises(KernelError, match="is not a libkrunfw") as caught:
        ensure_kernel(tmp_path, library=library)
    assert "msb setup" in (caught.value.hint or "")


def test_a_missing_library_is_an_error_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.MSB_LIBKRUNFW, str(tmp_path / "nowhere"))
    with pytest.raises(KernelError, match="nowhere") as caught:
        ensure_kernel(tmp_path)
    assert "msb setup" in (caught.value.hint or "")


def test_an_explicit_kernel_is_taken_as_it_is(tmp_path: Path) -> None:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(b"\x7fELF" + b"\0" * 60)
    found = ensure_kernel(tmp_path / "home", kernel=vmlinux)
    assert found.path == vmlinux
    assert len(found.digest) == 64


def test_an_explicit_kernel_that_is_a_bzimage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"MZ" + b"\0" * 100)
    with pytest.raises(KernelError, match="not an ELF file"):
        ensure_kernel(tmp_path, kernel=tmp_path / "bzImage")
