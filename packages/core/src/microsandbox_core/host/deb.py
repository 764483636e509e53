"""One library taken out of a .deb and published."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from microsandbox_core.artifacts import publish
from microsandbox_core.host import errors

if TYPE_CHECKING:
    from pathlib import Path

# libkrunfw 5.5 is 24 MB. A package that claims far more is not the one that was asked for.
_MAX_LIBRARY = 256 << 20
# ELF64, little endian; e_machine 62 at offset 18 is x86-64 (ELF specification, System V ABI).
_ELF64 = b"\x7fELF\x02\x01"
_X86_64 = b"\x3e\x00"


def extract_library(deb: Path, soname: str, target: Path) -> None:
    """Put the library `soname` of the package `deb` at `target`, mode 0644.

    The package holds `soname` as a symlink to the versioned file beside it; the file's bytes are what
    lands at `target`, under the one name the loader asks for. Nothing else of the package touches the
    disk, and none of its scripts runs. Raises BadPackage, StorageError.
    """
    content = _read_library(deb, soname)
    if content[:6] != _ELF64 or content[18:20] != _X86_64:
        raise _bad(deb, f"its {soname} is not a 64-bit x86 ELF file")
    publish(target, content, mode=0o644)


def _read_library(deb: Path, soname: str) -> bytes:
    import subprocess
    import tarfile

    content = None
    try:
        reader = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", os.fspath(deb)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise _bad(deb, "there is no dpkg-deb to read it with") from error
    with reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        broken: tarfile.TarError | None = None
        try:
            with tarfile.open(fileobj=reader.stdout, mode="r|") as archive:
                for member in archive:
                    name = member.name.rsplit("/", 1)[-1]
                    if content is None and member.isreg() and name.startswith(soname):
                        if member.size > _MAX_LIBRARY:
                            raise _bad(deb, f"it claims a library of {member.size} bytes")
                        stream = archive.extractfile(member)
                        assert stream is not None
                        content = stream.read()
        except tarfile.TarError as error:
            broken = error
        # Drained first: tarfile stops at the end marker, and dpkg-deb must not die of a closed pipe.
        while reader.stdout.read(1 << 16):
            pass
        complaint = reader.stderr.read().decode("utf-8", "replace").strip()
    if reader.returncode != 0:
        raise _bad(deb, complaint or f"dpkg-deb ended with {reader.returncode}")
    if broken is not None:
        raise _bad(deb, f"its content cannot be read ({broken})")
    if content is None:
        raise _bad(deb, f"it holds no {soname}")
    return content


def _bad(what: Path, reason: str) -> errors.BadPackage:
    return errors.BadPackage(
        f"{what.name} is not usable: {reason}",
        "run `msb setup` again; if it stays so, name a library yourself in MSB_LIBKRUNFW",
    )
