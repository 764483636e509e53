"""What POSIX says of files holds in a share, whatever its mode: in a guest, in all of its mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.msb import Msb
from tests.support.programs import compiled

pytestmark = [pytest.mark.vm, pytest.mark.once]

# Each way of owners and each cache once, for the time it takes; all nine pairs are tested without a machine
# (packages/fs/tests/test_mounted.py).
MODES = (("virtual", "auto"), ("squash", "none"), ("passthrough", "always"))


@pytest.mark.parametrize(
    ("start", "modes"),
    # A machine that is booted has devices for two.
    [([], MODES), (["--cold"], MODES[:2]), (["--cold"], MODES[2:])],
    ids=["stream", "device", "device, written back"],
)
def test_what_posix_says_of_files_holds_in_every_mode(
    msb: Msb, tmp_path: Path, start: list[str], modes: tuple[tuple[str, str], ...]
) -> None:
    program = tmp_path / "posix"
    program.write_bytes(compiled("posix"))
    program.chmod(0o755)
    options = [*start, "-v", f"{program}:/posix:ro"]
    lines = ["grep -c ' virtiofs ' /proc/mounts"]
    for ownership, cache in modes:
        (tmp_path / ownership).mkdir()
        options += ["-v", f"{tmp_path / ownership}:/{ownership}:owner={ownership},cache={cache}"]
        lines.append(f"/posix /{ownership} {ownership} {cache}; echo {ownership} $?")
    done = msb.run("sh", "-c", "\n".join(lines), options=options).succeeded()
    devices, *told = done.text.splitlines()
    assert told == [f"{ownership} 0" for ownership, _ in modes]
    assert int(devices) == len(modes) or not start
    # Of owners, set-id bits and devices the host has nothing.
    for path in (path for ownership, _ in modes for path in (tmp_path / ownership).rglob("*")):
        seen = path.lstat()
        assert seen.st_uid == os.getuid()
        assert not seen.st_mode & 0o7000
        assert path.is_symlink() or path.is_file() or path.is_dir()
