"""The wheels, in empty virtual environments: each package alone, and all of them running a sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.alone(reason="all processors compile")]

_ROOT = Path(__file__).parents[2]
_PACKAGES = (
    "microsandbox",
    "microsandbox_cli",
    "microsandbox_core",
    "microsandbox_fs",
    "microsandbox_net",
    "microsandbox_oci",
)
_ALONE = ("microsandbox_core", "microsandbox_fs", "microsandbox_net", "microsandbox_oci")
_AGENTD = "microsandbox_core/_agent/agentd"


@dataclass(frozen=True)
class Environment:
    """A virtual environment with wheels installed."""

    directory: Path

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, with nothing of the workspace's environment in sight."""
        hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
        return subprocess.run(
            [self.directory / "bin" / program, *arguments],
            env={name: value for name, value in os.environ.items() if name not in hidden},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.directory,
        )


def _uv(*arguments: str | Path) -> None:
    uv = shutil.which("uv")
    assert uv is not None, "uv is not on PATH: run the tests with `make test`"
    done = subprocess.run(
        [uv, *arguments], cwd=_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every package's wheel by its module's name, built from its source distribution."""
    dist = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        # One place for what cargo compiles: the packages share most of it, and so does the next run.
        patch.setenv("CARGO_TARGET_DIR", str(_ROOT / "target" / "wheels"))
        patch.delenv("MSB_AGENTD", raising=False)
        _uv("build", "--all-packages", "--out-dir", dist)
    found = {wheel.name.partition("-")[0]: wheel for wheel in dist.glob("*.whl")}
    assert sorted(found) == sorted(_PACKAGES)
    assert len(list(dist.glob("*.tar.gz"))) == len(_PACKAGES)
    return found


def _install(directory: Path, *wheels: Path) -> Environment:
    _uv("venv", "--quiet", "--python", sys.executable, directory)
    # Files, not names: an index may have packages of the same names.
    _uv("pip", "install", "--quiet", "--python", directory / "bin" / "python", *wheels)
    return Environment(directory)


def test_agentd_is_inside_cores_wheel_and_executable(wheels: dict[str, Path]) -> None:
    wheel = wheels["microsandbox_core"]
    assert wheel.name.endswith("-py3-none-manylinux_2_17_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        entry = archive.getinfo(_AGENTD)
        binary = archive.read(entry)
    assert (entry.external_attr >> 16) & 0o111 == 0o111
    assert binary[:5] == b"\x7fELF\x02"
    assert len(binary) < 2_000_000
    assert not _needs_a_loader(binary), "a guest's image need not have a C library"


def _needs_a_loader(binary: bytes) -> bool:
    """Whether an ELF64 program has a PT_INTERP (3) segment."""
    table, size, count = (
        int.from_bytes(binary[32:40], "little"),
        int.from_bytes(binary[54:56], "little"),
        int.from_bytes(binary[56:58], "little"),
    )
    kinds = (binary[table + index * size : table + index * size + 4] for index in range(count))
    return any(int.from_bytes(kind, "little") == 3 for kind in kinds)


def test_the_manual_pages_are_in_the_command_lines_wheel(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["microsandbox_cli"]) as archive:
        names = archive.namelist()
    assert [name for name in names if name.endswith(".data/data/share/man/man1/msb-run.1")]


def test_nothing_that_was_built_is_in_a_source_distribution(wheels: dict[str, Path]) -> None:
    import tarfile

    for archive in wheels["microsandbox_core"].parent.glob("*.tar.gz"):
        with tarfile.open(archive) as opened:
            names = opened.getnames()
        assert not [name for name in names if name.endswith((".so", "/_agent/agentd")) or "/target/" in name]


@pytest.mark.parametrize("module", _ALONE)
def test_a_package_installs_and_imports_alone(wheels: dict[str, Path], tmp_path: Path, module: str) -> None:
    environment = _install(tmp_path / "venv", wheels[module])
    program = (
        f"import importlib.util, {module}\n"
        f"others = [name for name in {_PACKAGES!r} if importlib.util.find_spec(name)]\n"
        f"print({module}.__version__, *others)"
    )
    done = environment.run("python", "-I", "-W", "error", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [_version(wheels[module]), module]


def _version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


@pytest.mark.vm
@pytest.mark.once
def test_the_installed_msb_runs_a_sandbox(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = _install(tmp_path / "venv", *wheels.values())
    version = environment.run("msb", "--version")
    assert version.stdout == f"msb {_version(wheels['microsandbox_cli'])}\n"

    agentd = next((tmp_path / "venv").glob(f"lib/python*/site-packages/{_AGENTD}"))
    assert os.access(agentd, os.X_OK)

    layout = tmp_path / "busybox"
    builder = _ROOT / "demo" / "busybox_image.py"
    built = environment.run("python", builder, layout)
    assert built.returncode == 0, built.stderr

    loaded = environment.run("msb", "load", f"oci:{layout}", "-t", "busybox")
    assert loaded.returncode == 0, loaded.stderr
    ran = environment.run("msb", "run", "busybox", "--", "echo", "hello")
    assert (ran.returncode, ran.stdout) == (0, "hello\n"), ran.stderr
