"""The guest kernel: taken out of libkrunfw once and kept as an ELF file that VMMs boot.

The image inside libkrunfw is a flat run of bytes for one load address. It still contains the
note by which a PVH loader finds the 32-bit entry point (Linux `arch/x86/platform/pvh/head.S`,
`XEN_ELFNOTE_PHYS32_ENTRY`), so that an ELF header, one PT_LOAD and one PT_NOTE around the
unchanged bytes give a file that QEMU's `-kernel` and libkrun's `krun_set_kernel` both take.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

from microsandbox_core import env
from microsandbox_core.artifacts import Stamp, identity, publish
from microsandbox_core.digests import sha256
from microsandbox_core.errors import KernelError
from microsandbox_core.host.libkrunfw import find_libkrunfw

_PAGE = 4096
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE_HEADER = struct.Struct("<III")
_PHYS32_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY, xen/include/public/elfnote.h
_EM_X86_64 = 62
_ET_EXEC = 2
_PT_LOAD, _PT_NOTE = 1, 4

_INSTALL_HINT = "run `msb setup` to install libkrunfw, or set MSB_KERNEL to a kernel of your own"


class KernelImage(NamedTuple):
    """A kernel as libkrunfw hands it out: bytes, the address they belong at, the 64-bit entry."""

    load_address: int
    entry: int
    data: bytes


class Kernel(NamedTuple):
    """A kernel file that a VMM can boot, and the SHA-256 of its bytes (64 hex digits)."""

    path: Path
    digest: str


def read_libkrunfw(library: Path) -> KernelImage:
    """Load the library and take a copy of the kernel in it. Raises `KernelError`."""
    # Only here: parsing the declaration costs more than a whole start that finds the cache filled.
    from cffi import FFI

    ffi: Any = FFI()
    ffi.cdef("char *krunfw_get_kernel(uint64_t *load_addr, uint64_t *entry_addr, size_t *size);")
    try:
        # dlopen() runs a library's constructors, so the path has to be exactly the one that was found.
        handle = ffi.dlopen(str(library.resolve(strict=True)))
        function = handle.krunfw_get_kernel
    except (OSError, AttributeError) as error:
        raise KernelError(f"{library} is not a libkrunfw: {error}", hint=_INSTALL_HINT) from error
    load, entry, size = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("size_t *")
    start = function(load, entry, size)
    if start == ffi.NULL or size[0] == 0:
        raise KernelError(f"{library} holds no kernel", hint=_INSTALL_HINT)
    return KernelImage(int(load[0]), int(entry[0]), bytes(ffi.buffer(start, size[0])))


def wrap_pvh_elf(image: KernelImage) -> bytes:
    """The kernel as an ELF64 file with its PVH note. Raises `KernelError` when it has none."""
    note_offset, note_size = _find_pvh_note(image.data)
    header = _ELF_HEADER.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        _ET_EXEC,
        _EM_X86_64,
        1,
        image.entry,
        _ELF_HEADER.size,
        0,
        0,
        _ELF_HEADER.size,
        _PROGRAM_HEADER.size,
        2,
        0,
        0,
        0,
    )
    size, base = len(image.data), image.load_address
    load = _PROGRAM_HEADER.pack(_PT_LOAD, 7, _PAGE, base, base, size, size, _PAGE)
    note_address = base + note_offset
    note = _PROGRAM_HEADER.pack(
        _PT_NOTE, 4, _PAGE + note_offset, note_address, note_address, note_size, note_size, 4
    )
    return (header + load + note).ljust(_PAGE, b"\0") + image.data


def _find_pvh_note(data: bytes) -> tuple[int, int]:
    """Offset and size in bytes of the PHYS32_ENTRY note."""
    at = -1
    while (at := data.find(b"Xen\0", at + 1)) >= 0:
        start = at - _NOTE_HEADER.size
        if start < 0:
            continue
        name_size, value_size, kind = _NOTE_HEADER.unpack_from(data, start)
        if (name_size, kind) == (4, _PHYS32_ENTRY) and value_size in (4, 8):
            return start, _NOTE_HEADER.size + 4 + value_size
    raise KernelError(
        "the kernel has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY)",
        hint="use a kernel built with CONFIG_PVH, as libkrunfw's is",
    )


def ensure_kernel(home: Path, *, library: Path | None = None, kernel: Path | None = None) -> Kernel:
    """The kernel to boot, made if it is not in the cache under `home` yet.

    `kernel` names an ELF file to boot as it is; `library` a libkrunfw to take one from. With
    neither, libkrunfw is searched for (see `find_libkrunfw`). A cached file that no longer has
    the bytes it should have is made again. Raises `KernelError` or `StorageError`.
    """
    if kernel is not None:
        return _explicit(home, kernel)
    found = find_libkrunfw(home, library)
    if found is None:
        setting = library or env.path(env.MSB_LIBKRUNFW)
        if setting is not None:
            raise KernelError(
                f"no guest kernel: {setting} (from {env.MSB_LIBKRUNFW}) is not a file", hint=_INSTALL_HINT
            )
        raise KernelError("no guest kernel: libkrunfw.so.5 is not installed", hint=_INSTALL_HINT)
    try:
        # One small file maps a library, as it lies on disk now, to the kernel that came out of it.
        source = sha256(f"{found.resolve()}\n{identity(found)}".encode()).hexdigest()
    except OSError as error:
        raise KernelError(f"cannot read {found}: {error.strerror}", hint=_INSTALL_HINT) from error
    directory = home / "cache" / "kernels"
    known = directory / f"from-{source[:32]}"
    try:
        digest = known.read_text()
    except (OSError, UnicodeDecodeError):
        digest = ""
    if len(digest) == 64:
        stamp = Stamp(directory / f"{digest}.elf", digest)
        if stamp.holds():
            return Kernel(stamp.path, digest)
    content = wrap_pvh_elf(read_libkrunfw(found))
    digest = sha256(content).hexdigest()
    stamp = Stamp(directory / f"{digest}.elf", digest)
    publish(stamp.path, content)
    stamp.write()
    publish(known, digest.encode(), mode=0o600)
    return Kernel(stamp.path, digest)


def _explicit(home: Path, kernel: Path) -> Kernel:
    try:
        with kernel.open("rb") as file:
            magic = file.read(4)
            if magic != b"\x7fELF":
                raise KernelError(
                    f"{kernel} is not an ELF file (it starts with {magic!r})",
                    hint="give an uncompressed vmlinux with a PVH entry, not a bzImage",
                )
            seen = identity(kernel)
            known = home / "cache" / "kernels" / f"at-{sha256(seen.encode()).hexdigest()[:32]}"
            try:
                digest = known.read_text()
            except (OSError, UnicodeDecodeError):
                digest = ""
            if len(digest) != 64:
                import hashlib

                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                publish(known, digest.encode(), mode=0o600)
    except OSError as error:
        raise KernelError(
            f"cannot read the kernel {kernel}: {os.strerror(error.errno or 0)}",
            hint="check the path in MSB_KERNEL or `kernel=`",
        ) from error
    return Kernel(kernel, digest)
