"""Build hook: compiles agentd and puts it into the package.

A wheel, editable ones included, carries the binary; an sdist carries the crate's sources with a lock
file of their own, so that a wheel can be built from it anywhere. Two places of the crate follow from
that: `crates/agentd` of a checkout, `agentd` of an unpacked sdist.

`MSB_AGENTD=FILE` takes a binary that is already built; no Rust toolchain is needed then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_TARGET = "x86_64-unknown-linux-gnu"
_IN_PACKAGE = "microsandbox_core/_agent/agentd"
# Static, so there is no C library whose version a tag would have to name: the oldest tag that
# installers take. Nothing in the package depends on the interpreter's version.
_TAG = "py3-none-manylinux_2_17_x86_64"
_PROFILE = {
    # A guest has no C library to link with.
    "RUSTFLAGS": "-C target-feature=+crt-static",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "s",
    "CARGO_PROFILE_RELEASE_LTO": "fat",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "1",
    "CARGO_PROFILE_RELEASE_PANIC": "abort",
    "CARGO_PROFILE_RELEASE_STRIP": "symbols",
}
_CRATE_FILES = ("Cargo.toml", "LICENSE", "README.md", "build.rs")
_CRATE_DIRECTORIES = ("src", "tests", "benches")
_SIZE_LIMIT = 2_000_000  # bytes; every guest of a host reads it from the boot disk


class AgentdHook(BuildHookInterface[Any]):
    """Named by `[tool.hatch.build.hooks.custom]`."""

    _staged: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; `version` is "editable" or "standard"."""
        root = Path(self.root)
        if self.target_name == "sdist":
            build_data["force_include"].update(self._sdist_files(root))
            return
        binary = root / "src" / _IN_PACKAGE
        _publish(_agentd(root), binary)
        build_data["pure_python"] = False
        build_data["tag"] = _TAG
        if version != "editable":
            # Named here because it is ignored by git, and hatchling leaves such files out.
            build_data["force_include"][str(binary)] = _IN_PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling when the archive is written."""
        if self._staged is not None:
            self._staged.cleanup()

    def _sdist_files(self, root: Path) -> dict[str, str]:
        """The crate's files as they go into an sdist: file on disk -> name in the archive."""
        self._staged = tempfile.TemporaryDirectory(prefix="agentd-")
        staged = Path(self._staged.name)
        crate = _crate(root)
        for file in _CRATE_FILES:
            if (crate / file).is_file():
                shutil.copy(crate / file, staged)
        for directory in _CRATE_DIRECTORIES:
            if (crate / directory).is_dir():
                shutil.copytree(crate / directory, staged / directory)
        shutil.copy(_lock_file(crate), staged / "Cargo.lock")
        manifest = staged / "Cargo.toml"
        text = manifest.read_text(encoding="utf-8")
        if "\n[workspace]" not in text:
            # It may be unpacked below somebody's cargo workspace, which it does not belong to.
            manifest.write_text(text + "\n[workspace]\n", encoding="utf-8")
            _keep_to_crate(staged)
        return {
            str(path): f"agentd/{path.relative_to(staged)}" for path in staged.rglob("*") if path.is_file()
        }


def _keep_to_crate(crate: Path) -> None:
    """Take out of a workspace's lock file what only its other members need; versions stay.

    `--locked` refuses a lock file that cargo would write differently. Only cargo knows how: other members
    also switch on optional dependencies of packages that are shared.
    """
    command = ["cargo", "update", "--quiet", "--workspace", "--manifest-path", str(crate / "Cargo.toml")]
    if subprocess.run([*command, "--offline"], stdin=subprocess.DEVNULL, capture_output=True).returncode != 0:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)  # nothing was built here before


def _crate(root: Path) -> Path:
    for crate in (root / "agentd", root.parent.parent / "crates" / "agentd"):
        if (crate / "Cargo.toml").is_file():
            return crate
    raise FileNotFoundError("the sources of agentd are neither in agentd/ nor in ../../crates/agentd/")


def _lock_file(crate: Path) -> Path:
    for directory in (crate, *crate.parents):
        if (directory / "Cargo.lock").is_file():
            return directory / "Cargo.lock"
    raise FileNotFoundError(f"no Cargo.lock in {crate} or above it")


def _agentd(root: Path) -> Path:
    prebuilt = os.environ.get("MSB_AGENTD")
    if prebuilt:
        return Path(prebuilt)
    if shutil.which("cargo") is None:
        raise FileNotFoundError(
            "cargo is not on PATH: building microsandbox-core needs a Rust toolchain (1.85 or newer), "
            "or MSB_AGENTD=FILE with an agentd that is already built"
        )
    crate = _crate(root)
    workspace = crate.parent.parent
    if crate.parent.name == "crates" and (workspace / "Cargo.toml").is_file():
        # A directory of its own: these flags are nobody else's, and would evict what others built.
        directory = workspace / "target" / "agentd"
    else:
        directory = crate / "target"
    command = ["cargo", "build", "--release", "--locked", "--target", _TARGET, "--bin", "agentd"]
    command += ["--manifest-path", str(crate / "Cargo.toml"), "--target-dir", str(directory)]
    subprocess.run(command, env={**os.environ, **_PROFILE}, check=True, stdin=subprocess.DEVNULL)
    return directory / _TARGET / "release" / "agentd"


def _publish(built: Path, binary: Path) -> None:
    content = built.read_bytes()
    if content[:4] != b"\x7fELF":
        raise ValueError(f"{built} is not an ELF program")
    if len(content) >= _SIZE_LIMIT:
        raise ValueError(f"{built} has {len(content)} bytes, and the limit is {_SIZE_LIMIT}")
    if binary.is_file() and binary.read_bytes() == content:
        return
    # Renamed into place: a sandbox that starts meanwhile reads the old one or the new one.
    binary.parent.mkdir(parents=True, exist_ok=True)
    staged = binary.with_name(f".agentd.{os.getpid()}")
    staged.write_bytes(content)
    staged.chmod(0o755)
    staged.replace(binary)
