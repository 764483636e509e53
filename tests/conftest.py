"""Fixtures of the tests that run the whole product: homes, `msb`, the host's view, a canary."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import busybox_image
import pytest
from microsandbox_core import env
from microsandbox_core.host.libkrunfw import find_libkrunfw

from tests.support.beside import DIRECTORY
from tests.support.canary import Canary
from tests.support.host import Host
from tests.support.msb import Msb


@pytest.fixture(scope="session")
def run_directory(request: pytest.FixtureRequest) -> Path:
    """A directory of this run for homes, whose paths stay short; its tests and nobody else's are in it."""
    return request.config.stash[DIRECTORY]


def _short_directory(run_directory: Path) -> Iterator[Path]:
    # Not tmp_path: a Unix socket's path has 108 bytes, and what happens beyond has a test of its own.
    directory = Path(tempfile.mkdtemp(dir=run_directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def settings() -> dict[str, str]:
    """The environment variables by which a home of the tests finds this machine's guest kernel."""
    library = find_libkrunfw(env.home())
    if library is None:
        pytest.fail("no libkrunfw.so.5 on this machine: run `make setup`", pytrace=False)
    # With MSB_COLD in the environment of the tests every sandbox boots: the suite has to pass both ways.
    cold = env.value(env.MSB_COLD)
    return {
        env.MSB_LIBKRUNFW: str(library),
        # No test asks a registry of the real world: what is not on loopback goes to a port where nobody is.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        **({env.MSB_COLD: cold} if cold else {}),
    }


@pytest.fixture(scope="session")
def busybox_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's busybox image as an OCI layout."""
    return busybox_image.build(tmp_path_factory.mktemp("image") / "busybox")


@pytest.fixture(scope="session")
def _shared_directory(run_directory: Path) -> Iterator[Path]:
    yield from _short_directory(run_directory)


@pytest.fixture(scope="session")
def _homes(
    _shared_directory: Path,
    settings: dict[str, str],
    busybox_layout: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    msb = Msb(_shared_directory, settings)
    msb("load", f"oci:{busybox_layout}", "-t", "busybox").succeeded()
    # The first makes the template of the machine, the second that of the image.
    msb.run("true").succeeded()
    msb.run("true").succeeded()
    # Before any test leaves more there. Copies of templates are of no use: they are trusted only where they
    # were made.
    plain = tmp_path_factory.mktemp("plain")
    # The upper in the cache is 8 GiB of holes.
    subprocess.run(["cp", "-a", "--sparse=always", msb.home / "cache", plain], check=True)
    shutil.rmtree(plain / "cache" / "templates", ignore_errors=True)
    return msb.home, plain / "cache"


@pytest.fixture(scope="session")
def shared_home(_homes: tuple[Path, Path]) -> Path:
    """A home with busybox that has started sandboxes before, so that its cache is complete."""
    return _homes[0]


@pytest.fixture(scope="session")
def plain_cache(_homes: tuple[Path, Path]) -> Path:
    """What the shared home's cache was before any test, without templates: to be copied into other homes."""
    return _homes[1]


@pytest.fixture
def msb(shared_home: Path, settings: dict[str, str]) -> Iterator[Msb]:
    """`msb` in the shared home. A test that leaves a sandbox there fails."""
    program = Msb(shared_home, settings)
    yield program
    try:
        program.host.wait_empty()
        assert program.host.rows() == []
    except BaseException:
        program.remove_everything()
        raise


@pytest.fixture
def host(msb: Msb) -> Host:
    """The host's view of the shared home."""
    return msb.host


@pytest.fixture
def own_home(plain_cache: Path, run_directory: Path) -> Iterator[Path]:
    """A home for one test, with busybox."""
    for directory in _short_directory(run_directory):
        subprocess.run(["cp", "-a", "--sparse=always", plain_cache, directory], check=True)
        yield directory


@pytest.fixture
def own_msb(own_home: Path, settings: dict[str, str]) -> Iterator[Msb]:
    """`msb` in a home that the test may break."""
    program = Msb(own_home, settings)
    yield program
    for process in program.host.processes():
        process.kill()
        process.wait_gone(within=60)


@pytest.fixture
def empty_msb(settings: dict[str, str], run_directory: Path) -> Iterator[Msb]:
    """`msb` with a home that does not exist yet."""
    for directory in _short_directory(run_directory):
        yield Msb(directory / "home", settings)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """Files of the host; that they are as before is checked at the end."""
    found = Canary(tmp_path / "canary")
    yield found
    found.assert_untouched()
