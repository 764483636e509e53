"""Programs that people use, in a Debian guest, on a directory of the host and on a directory volume.

    MSB_TEST_DEBIAN=DIRECTORY pytest tests/functional/test_programs_on_shares.py

DIRECTORY is as tests/support/debian.py has it. The guest fetches nothing: what it installs is on the share.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import DIRECTORY, Debian, root
from tests.support.msb import Msb

PACKAGES = "git,sqlite3,python3-venv,postgresql,npm,cargo"

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.skipif(DIRECTORY is None, reason="MSB_TEST_DEBIAN names no directory for a Debian guest"),
]

GIT = """
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b.invalid
export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b.invalid
mkdir /share/git; cd /share/git; git init -q work; cd work
mkdir d; for n in $(seq 60); do seq $n $((n * 20)) > d/$n; done
git add -A; git commit -qm one
for n in 1 2 3; do echo $n >> d/$n; git commit -qam $n; done
[ -z "$(git status --short)" ]; chmod +x d/7; [ "$(git status --short)" = " M d/7" ]; git checkout -q d/7
git branch other HEAD~2; git checkout -q other; echo o > o; git add o; git commit -qm o
git rebase -q -; git checkout -q -
git gc -q; git fsck --strict
git clone -q --no-hardlinks . ../copy; diff -r d ../copy/d
git clone -q . ../linked; git -C ../linked log --oneline | wc -l
git worktree add -q ../tree other; cat ../tree/o
"""

# Shares its index by mapped pages, and locks by fcntl.
SQLITE = """
mkdir /share/sqlite; cd /share/sqlite
cat > write.py
sqlite3 wal.db "pragma journal_mode=wal" "create table t(who, n)"
python3 write.py a & one=$!; python3 write.py b & two=$!; wait $one; wait $two
sqlite3 wal.db "select count(distinct who || n) from t" "pragma integrity_check"
"""
WRITE = """
import sqlite3, sys
database = sqlite3.connect("wal.db", timeout=120)
for number in range(40):
    with database:
        database.execute("insert into t values(?, ?)", (sys.argv[1], number))
"""

VENV = """
cd /share; python3 -m venv venv
venv/bin/pip install -q --no-index --disable-pip-version-check ./worldly-1.0-py3-none-any.whl
venv/bin/python -c "import worldly"; venv/bin/worldly
venv/bin/pip uninstall -q -y worldly; [ ! -e venv/bin/worldly ]
"""

# A volume's root is the default user's alone until it is given to somebody, as images of databases do. The
# server is stopped in between as by a loss of power: what was committed is there.
POSTGRES = """
bin=$(echo /usr/lib/postgresql/*/bin)
postgres() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
server() { postgres $bin/pg_ctl -D data -w -t 200 -l server -o "-k /tmp -c listen_addresses=" "$@" >> log; }
ask() { postgres psql -h /tmp -d postgres -qAtc "$1"; }
cd /data; chown postgres: .
postgres $bin/initdb -D data --no-locale -E UTF8 -A trust > log
server start
ask "create table t(n int primary key); insert into t select generate_series(1, 5000)"
server -m immediate stop
server start
ask "select count(*), sum(n) from t"
ask "vacuum full t"
server stop
stat -c "%a %U" data
"""

NPM = """
mkdir -p /share/npm/inner /share/npm/outer; cd /share/npm/inner
echo '{"name": "inner", "version": "1.0.0", "bin": {"inner": "run.js"}}' > package.json
printf '#!/usr/bin/env node\\nconsole.log("from the package")\\n' > run.js; chmod +x run.js
npm pack --silent > /dev/null; cd ../outer
npm init --yes > /dev/null; npm install --offline --no-audit --no-fund --silent ../inner/inner-1.0.0.tgz
node_modules/.bin/inner; ls -A node_modules
"""

CARGO = """
cd /share; export USER=a CARGO_HOME=/share/cargo_home
cargo new -q --vcs none hello; cd hello; cargo build -q --offline
target/debug/hello; touch src/main.rs; cargo build -q --offline; cargo clean -q; ls
"""


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the host."""
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def guest(share: Path, shared_home: Path, settings: dict[str, str]) -> Iterator[Debian]:
    msb = Msb(shared_home, settings)
    options = ["--memory", "1G", "-v", f"{share}:/share", "-v", "programs:/data"]
    msb("create", root("programs", PACKAGES), "--name", "programs", *options, timeout=500).succeeded()
    yield Debian(msb, "programs")
    msb("rm", "--force", "programs").succeeded()
    msb("volume", "rm", "programs").succeeded()


def test_git(guest: Debian, share: Path) -> None:
    assert guest(GIT) == "4\no\n"
    # The host's git, too, finds it whole.
    work = ["git", "-c", "safe.directory=*", "-C", str(share / "git" / "work")]
    subprocess.run([*work, "fsck", "--strict"], check=True, capture_output=True)
    assert (share / "git/linked/d/60").read_bytes() == (share / "git/work/d/60").read_bytes()


def test_sqlite_in_wal_mode_by_two_processes(guest: Debian) -> None:
    assert guest(SQLITE, stdin=WRITE) == "wal\n80\nok\n"


def test_tar_keeps_modes_times_and_links(guest: Debian, share: Path) -> None:
    with tarfile.open(share / "all.tar", "w") as archive:
        for number in range(300):
            member = tarfile.TarInfo(f"d{number % 7}/{number}")
            member.size, member.mode, member.mtime, member.uid = number, 0o600 + number % 8, number, number
            archive.addfile(member, io.BytesIO(b"x" * number))
        for name, kind, to in (("hard", tarfile.LNKTYPE, "d0/7"), ("soft", tarfile.SYMTYPE, "d0/7")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, to
            archive.addfile(member)
    guest("mkdir /share/tar; cd /share/tar; tar xf ../all.tar; tar df ../all.tar")
    assert (share / "tar/d5/299").read_bytes() == b"x" * 299
    assert (share / "tar/hard").stat().st_ino == (share / "tar/d0/7").stat().st_ino
    assert guest("stat -c '%a %u %Y %s' /share/tar/d6/6") == "606 6 6 6\n"


def test_a_virtual_environment_with_a_wheel(guest: Debian, share: Path) -> None:
    name = "worldly-1.0-py3-none-any.whl"
    about = "worldly-1.0.dist-info"
    with zipfile.ZipFile(share / name, "w") as archive:
        archive.writestr("worldly.py", "print('from the wheel')\ndef main():\n    print('as a program')\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: worldly\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/entry_points.txt", "[console_scripts]\nworldly = worldly:main\n")
        archive.writestr(f"{about}/RECORD", "")
    assert guest(VENV) == "from the wheel\nfrom the wheel\nas a program\n"


def test_postgres_on_a_volume(guest: Debian) -> None:
    assert guest(POSTGRES) == "5000|12502500\n700 postgres\n"


def test_npm(guest: Debian) -> None:
    assert guest(NPM) == "from the package\n.bin\n.package-lock.json\ninner\n"


def test_cargo(guest: Debian) -> None:
    assert guest(CARGO) == "Hello, world!\nCargo.lock\nCargo.toml\nsrc\n"
