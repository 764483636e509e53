"""The broker with a real kernel as its guest: this machine's, in a mount namespace of its own. No VM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import compiled

# As `mounted.py` has it.
NOT_HERE = 77
# With the second, what is written is written back later.
CACHES = pytest.mark.parametrize("cache", ["auto", "always"])

FILES = r"""
echo one > file; chmod 4750 file; [ "$(stat -c %a file)" = 4750 ]
echo two >> file; [ "$(cat file)" = $'one\ntwo' ]
ln file other; [ "$(stat -c %h file)" = 2 ]; rm other; [ "$(stat -c %h file)" = 1 ]
mkdir -p a/b/c; mv file a/b/c/; mv a/b z; [ -f z/c/file ]
exec 5<>z/c/file; rm z/c/file; cat <&5 | grep -q two; exec 5>&-
mkfifo fifo; [ -p fifo ]; (echo through > fifo &); [ "$(cat fifo)" = through ]
ln -s /etc/hostname link; [ "$(readlink link)" = /etc/hostname ]
for number in $(seq 300); do : > "z/$number"; done; [ "$(ls z | wc -l)" = 301 ]
tar cf all.tar z; mkdir copy; tar xf all.tar -C copy; diff -r z copy/z; rm -rf z copy; rmdir a
"""

PROGRAMS = """
import mmap, os, sqlite3
with open("mapped", "w+b") as file:
    file.truncate(8192)
    with mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[4096:4100] = b"text"
assert open("mapped", "rb").read()[4096:4100] == b"text"
os.setxattr("mapped", "user.x", b"1")
assert os.listxattr("mapped") == ["user.x"]
with sqlite3.connect("database") as database:
    database.execute("pragma journal_mode=wal")
    database.execute("create table numbers(n)")
    database.executemany("insert into numbers values(?)", [(n,) for n in range(1000)])
assert database.execute("select count(*) from numbers").fetchone() == (1000,)
"""


def mounted(home: Path, script: str, *most: str, cache: str = "auto", ownership: str = "virtual") -> Path:
    """Runs `script` in a mounted share; returns the directory of the host."""
    share, at = home / "share", home / "at"
    share.mkdir()
    at.mkdir()
    unshare = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    program = [
        sys.executable,
        str(Path(__file__).with_name("mounted.py")),
        str(share),
        str(at),
        script,
        ownership,
        cache,
        *most,
    ]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1)")
    done = subprocess.run([*unshare, *program], capture_output=True, text=True, timeout=400, check=False)
    if done.returncode == NOT_HERE or done.stderr.startswith("unshare:"):
        pytest.skip("FUSE cannot be mounted here")
    assert done.returncode == 0, done.stderr
    return share


@CACHES
def test_everyday_commands_work_and_the_host_sees_private_files(tmp_path: Path, cache: str) -> None:
    share = mounted(tmp_path, FILES, cache=cache)
    assert sorted(path.name for path in share.iterdir()) == ["all.tar", "fifo", "link"]
    assert (share / "all.tar").stat().st_mode == 0o100600
    assert (share / "fifo").is_file()


@CACHES
def test_programs_map_lock_and_log(tmp_path: Path, cache: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAMS)
    share = mounted(tmp_path, f"'{sys.executable}' '{tmp_path}/program.py'", cache=cache)
    assert (share / "database").stat().st_size > 4096


FULL = r"""
refused() { if "$@" 2> ../said; then exit 9; fi; grep -q "quota exceeded" ../said; }
refused dd if=/dev/zero of=file bs=2000000 count=1
[ "$(stat -c %s file)" = 1048576 ]; [ "$(stat -f -c %f .)" = 0 ]
refused truncate -s 1048577 file; refused cp file other; refused ln -s file link
rm file other; dd if=/dev/zero of=file bs=500000 count=1 status=none; cp file other
refused truncate -s 600000 file; refused fallocate -l 600000 file
truncate -s 100 file; truncate -s 1000000 other; mv other file
"""


def test_a_full_share_says_so(tmp_path: Path) -> None:
    # F15
    share = mounted(tmp_path, FULL, str(1 << 20))
    assert sum(path.stat().st_size for path in share.iterdir()) <= 1 << 20


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
@CACHES
def test_git_works(tmp_path: Path, cache: str) -> None:
    mounted(
        tmp_path,
        "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null; git init -q .;"
        "seq 1000 > file; mkdir d; cp file d/; git add -A;"
        "git -c user.name=a -c user.email=a@b.invalid commit -qm one; git fsck --strict;"
        '[ -z "$(git status --short)" ]; chmod +x file; git status --short | grep -q "^ M file"',
        cache=cache,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="other users than root are asked for")
@pytest.mark.parametrize("cache", ["none", "auto", "always"])
@pytest.mark.parametrize("ownership", ["virtual", "squash", "passthrough"])
def test_what_posix_says_of_files_holds(tmp_path: Path, ownership: str, cache: str) -> None:
    program = tmp_path / "posix"
    program.write_bytes(compiled("posix"))
    program.chmod(0o700)
    script = f"'{program}' . {ownership} {cache} >&2"
    share = mounted(tmp_path, script, ownership=ownership, cache=cache)
    # Nothing of it is the host's: neither owners nor set-id bits nor devices.
    for path in share.rglob("*"):
        seen = path.lstat()
        assert seen.st_uid == os.geteuid()
        assert not seen.st_mode & 0o7000
        assert path.is_symlink() or path.is_file() or path.is_dir()
