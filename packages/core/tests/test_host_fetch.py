"""The real fetch of libkrunfw: it works, without root too, and leaves the machine's apt as it was."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cffi
import microsandbox_core
import pytest
from microsandbox_core.host import apt, libkrunfw, setup
from microsandbox_core.host.kernel_release import kernel_release

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not apt.available(), reason="this machine has no apt to fetch with"),
]

_MACHINES_OWN = (Path("/etc/apt"), Path("/var/lib/apt"), Path("/var/cache/apt"), Path("/var/lib/dpkg/status"))


def _state_of_apt() -> dict[str, str]:
    """Every file of the machine's apt: content below /etc, size and time of what is large."""
    found = {}
    for top in _MACHINES_OWN:
        for path in [top, *sorted(top.rglob("*"))]:
            status = path.lstat()
            facts = f"{status.st_mode:o} {status.st_uid} {status.st_size} {status.st_mtime_ns}"
            if path.is_file() and os.access(path, os.R_OK) and path.is_relative_to("/etc"):
                facts += hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = facts
    return found


@pytest.fixture
def home() -> Iterator[Path]:
    # Not pytest's own directory: another user has to get through to it.
    with tempfile.TemporaryDirectory(prefix="msb-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "home"


def test_the_library_comes_and_the_machine_stays_as_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MSB_LIBKRUNFW", raising=False)
    # A library that the system already has would leave nothing to fetch.
    monkeypatch.setattr(libkrunfw, "library_directories", list)
    before = _state_of_apt()
    steps = setup.plan(home)
    said: list[str] = []
    assert setup.run((steps[0], steps[3]), report=said.append) == ("state directory", "guest kernel")
    assert _state_of_apt() == before
    library = home / "lib" / "libkrunfw.so.5"
    assert library.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in home.rglob("*")] == ["lib", "libkrunfw.so.5"]
    assert kernel_release(library)[0].isdigit()
    again = setup.plan(home)[3]
    assert again.done
    assert again.says == str(library)


def _python_for_nobody() -> str | None:
    """An interpreter of this version that any user may run: ours may lie in somebody's home."""
    name = f"python3.{sys.version_info[1]}"
    for python in (Path(sys.base_prefix, "bin", name), Path("/usr/bin", name)):
        tried = subprocess.run(
            ["runuser", "-u", "nobody", "--", python, "-c", ""], capture_output=True, cwd="/"
        )
        if tried.returncode == 0:
            return str(python)
    return None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_privileges_can_fetch_it(home: Path) -> None:
    python = _python_for_nobody()
    if python is None:
        pytest.skip("no interpreter of this version that another user may run")
    home.parent.chmod(0o777)
    program = (
        "import sys; from pathlib import Path; from microsandbox_core.host import libkrunfw, setup\n"
        "libkrunfw.library_directories = list\n"
        "steps = setup.plan(Path(sys.argv[1])); setup.run((steps[0], steps[3]), report=print)\n"
    )
    modules = home.parent / "modules"
    package = Path(microsandbox_core.__file__).parent
    shutil.copytree(package, modules / package.name)
    site = Path(cffi.__file__).parent.parent
    for item in (*site.glob("*cffi*"), *site.glob("pycparser")):
        if item.is_dir():
            shutil.copytree(item, modules / item.name)
        else:
            shutil.copy(item, modules / item.name)
    done = subprocess.run(
        ["runuser", "-u", "nobody", "--", python, "-c", program, home],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(modules), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert (home / "lib" / "libkrunfw.so.5").is_file()
    assert home.stat().st_uid != 0
