"""The library that is taken out of a package, and packages that do not hold one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from microsandbox_core.errors import StorageError
from microsandbox_core.host import deb
from microsandbox_core.host.errors import BadPackage

_LIBRARY = b"\x7fELF\x02\x01".ljust(18, b"\0") + b"\x3e\x00" + b"kernel" * 1000


def _package(tmp_path: Path, files: dict[str, bytes]) -> Path:
    root = tmp_path / "root"
    control = root / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: libkrunfw5\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <nobody@mirror.example>\n"
        "Description: a package for a test\n"
    )
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    library = root / "usr/lib/x86_64-linux-gnu/libkrunfw.so.5"
    if files:
        library.parent.mkdir(parents=True, exist_ok=True)
        library.symlink_to("libkrunfw.so.5.5.0")
    made = tmp_path / "libkrunfw5.deb"
    subprocess.run(["dpkg-deb", "-b", root, made], check=True, capture_output=True)
    return made


def test_only_the_library_arrives_under_the_name_the_loader_asks_for(tmp_path: Path) -> None:
    package = _package(
        tmp_path,
        {
            "usr/lib/x86_64-linux-gnu/libkrunfw.so.5.5.0": _LIBRARY,
            "usr/lib/x86_64-linux-gnu/other.so": b"not wanted",
            "usr/share/doc/libkrunfw5/copyright": b"text",
        },
    )
    target = tmp_path / "home" / "lib" / "libkrunfw.so.5"
    deb.extract_library(package, "libkrunfw.so.5", target)
    assert target.read_bytes() == _LIBRARY
    assert target.stat().st_mode & 0o7777 == 0o644
    assert [entry.name for entry in target.parent.iterdir()] == ["libkrunfw.so.5"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"usr/share/doc/x": b"text"}, "holds no libkrunfw.so.5"),
        ({"usr/lib/x86_64-linux-gnu/libkrunfw.so.5.5.0": b"#!/bin/sh\n"}, "not a 64-bit x86 ELF"),
        ({"usr/lib/x86_64-linux-gnu/libkrunfw.so.5.5.0": b""}, "not a 64-bit x86 ELF"),
    ],
)
def test_a_package_without_a_usable_library(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    target = tmp_path / "lib" / "libkrunfw.so.5"
    with pytest.raises(BadPackage, match=reason) as caught:
        deb.extract_library(_package(tmp_path, files), "libkrunfw.so.5", target)
    assert caught.value.hint
    assert not target.exists()


def test_a_cut_off_package(tmp_path: Path) -> None:
    package = _package(tmp_path, {"usr/lib/x86_64-linux-gnu/libkrunfw.so.5.5.0": _LIBRARY * 50})
    package.write_bytes(package.read_bytes()[:-200])
    with pytest.raises(BadPackage):
        deb.extract_library(package, "libkrunfw.so.5", tmp_path / "lib" / "libkrunfw.so.5")
    assert not (tmp_path / "lib").exists()


def test_a_library_that_claims_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deb, "_MAX_LIBRARY", 100)
    package = _package(tmp_path, {"usr/lib/x86_64-linux-gnu/libkrunfw.so.5.5.0": _LIBRARY})
    with pytest.raises(BadPackage, match="claims a library of"):
        deb.extract_library(package, "libkrunfw.so.5", tmp_path / "lib" / "libkrunfw.so.5")


def test_a_target_that_cannot_be_replaced(tmp_path: Path) -> None:
    package = _package(tmp_path, {"usr/lib/x86_64-linux-gnu/libkrunfw.so.5.5.0": _LIBRARY})
    target = tmp_path / "lib" / "libkrunfw.so.5"
    target.mkdir(parents=True)
    with pytest.raises(StorageError):
        deb.extract_library(package, "libkrunfw.so.5", target)
    assert [entry.name for entry in target.parent.iterdir()] == ["libkrunfw.so.5"]
