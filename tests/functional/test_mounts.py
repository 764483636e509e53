"""Directories and files of the host in a sandbox: both sides see what either does, while it lives."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.msb import Msb

pytestmark = pytest.mark.vm

BIG = 5 << 20
MANY = 200


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """A name whose sandbox, if the test makes one, is removed, and forks of it."""
    yield "dev"
    for name in ("dev", "copy"):
        msb("rm", "--force", name)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with something to share."""
    monkeypatch.chdir(tmp_path)
    for name in ("src", "inner", "below"):
        Path(name).mkdir()
        Path(name, "which").write_text(f"{name}\n")
    Path("single").write_text("single\n")
    Path("src/big").write_bytes(os.urandom(BIG))
    return tmp_path


CHECKS = r"""
set -e
cat /app/which /app/inner/which /app/memory/below/which /etc/single
grep -c '^share' /proc/mounts
md5sum < /app/big
cp /app/big /app/copy; md5sum < /app/copy
dd if=/app/big of=/app/piece bs=1000 skip=7 seek=3 count=9 conv=notrunc 2>/dev/null
i=0; mkdir /app/many; while [ $i -lt 200 ]; do echo $i > /app/many/$i; i=$((i+1)); done
ls /app/many | wc -l; cat /app/many/* | sort -n | tail -n 1
mv /app/many/7 /app/seven; ln /app/seven /app/other; stat -c %h /app/seven
exec 5<> /app/held; echo held >&5; rm /app/held; [ ! -e /app/held ]
(exec 6< /proc/self/fd/5; cat <&6) || true
chown 7:8 /app/which; chmod 4751 /app/which; stat -c '%a %u:%g' /app/which
stat -c %u:%g /app/big
cd /app && tar cf - many | tar xf - -C /app/inner && diff -r many inner/many && rm -r many
echo appended >> /etc/single
sh -c 'echo no > /app/inner/ro/x' 2>&1 | grep -o 'Read-only file system'
cp /bin/busybox /app/inner/ro2/busybox; /app/inner/ro2/busybox 2>&1 | grep -o 'Permission denied'
cd /app/inner; mkdir t; touch -d @1 t; : > t/new; [ $(stat -c %Y t) -gt 1 ]
: > t/other; chmod 700 t; touch -d @5 t; stat -c '%Y %a' t; rm -r t
"""


@pytest.mark.parametrize("start", [[], ["--cold"]], ids=["template", "cold"])
def test_both_sides_see_what_either_does(msb: Msb, work: Path, start: list[str]) -> None:
    (work / "ro").mkdir()
    (work / "ro2").mkdir()
    done = msb.run(
        "sh", "-c", CHECKS,
        options=[
            # Deeper ones first: what lies in another is mounted after it.
            "-v", "./below:/app/memory/below", "-v", "./ro:/app/inner/ro:ro",
            "-v", "./ro2:/app/inner/ro2:noexec", "-v", "./inner:/app/inner", "-v", "./src:/app:cache=none",
            "-v", "./single:/etc/single",
            "--tmpfs", "/app/memory:4M", *start,
        ],
    )  # fmt: skip
    digest = hashlib.md5((work / "src/big").read_bytes()).hexdigest()
    assert done.succeeded().text.splitlines() == [
        "src", "inner", "below", "single", "6", f"{digest}  -", f"{digest}  -", str(MANY), str(MANY - 1), "2",
        "held", "4751 7:8", "0:0", "Read-only file system", "Permission denied",
        "5 700",
    ]  # fmt: skip
    assert (work / "src/copy").read_bytes() == (work / "src/big").read_bytes()
    assert (work / "src/piece").read_bytes() == bytes(3000) + (work / "src/big").read_bytes()[7000:16000]
    assert (work / "single").read_text() == "single\nappended\n"
    assert {path.name for path in (work / "inner/many").iterdir()} == {str(n) for n in range(MANY)} - {"7"}
    # Of what the guest made of it, the host's file has nothing.
    found = (work / "src/which").stat()
    assert (found.st_mode & 0o7000, found.st_uid) == (0, os.getuid())


def test_a_sandbox_has_them_for_as_long_as_it_lives(msb: Msb, work: Path, dev: str) -> None:
    share = work / "src"
    options = ["-v", "./src:/app:cache=none", "-v", "./inner:/ro:ro,owner=squash"]
    options += ["-v", "./below:/kept:cache=always"]
    msb("create", "busybox", "-n", dev, "-u", "1000:1001", *options).succeeded()
    # What is the host user's is the default user's, who is not root; others see it as it is.
    script = "id -u; stat -c %u:%g /app/which /ro/which; echo mine > /app/made; stat -c %u:%g /app/made"
    done = msb("exec", dev, "--", "sh", "-c", script).succeeded()
    assert done.text.split() == ["1000", "1000:1001", "1000:1001", "1000:1001"]
    assert (share / "made").read_text() == "mine\n"
    # A file that changes on the host is another at once.
    (share / "made").write_text("changed, and longer\n")
    assert msb("exec", dev, "--", "cat", "/app/made").succeeded().text == "changed, and longer\n"
    (share / "made").unlink()
    assert b"No such file" in msb("exec", dev, "--", "cat", "/app/made").err

    msb("cp", "single", f"{dev}:/app/copied").succeeded()
    assert (share / "copied").read_text() == "single\n"

    (found,) = json.loads(msb("inspect", dev).succeeded().out)
    bind, squashed, kept = found["config"]["volumes"]
    assert (bind["kind"], bind["source"], bind["target"]) == ("bind", str(share), "/app")
    assert (squashed["read_only"], squashed["ownership"]) == (True, "squash")
    assert (kept["target"], kept["cache"]) == ("/kept", "always")

    # Written back: what is closed is there, part of a page with the rest of it, and the time is the guest's.
    script = "cd /kept; printf B | dd of=which conv=notrunc; echo more >> which; touch -d @1000000 which"
    msb("exec", dev, "--", "sh", "-c", script).succeeded()
    assert (work / "below/which").read_text() == "Below\nmore\n"
    assert (work / "below/which").stat().st_mtime == 1_000_000

    told = msb("fork", dev, "--name", "copy").failed()
    assert "cannot fork while it runs" in told
    msb("pause", dev).succeeded()
    msb("resume", dev).succeeded()
    # Stopped while somebody writes: all that was written before is there, and mapped pages are as well.
    writer = "i=0; while :; do echo $i >> /app/log; i=$((i+1)); done"
    synced = "exec 5> /kept/log; echo one >&5; fsync /kept/log; echo two >&5"
    msb("exec", "--detach", dev, "--", "sh", "-c", f"{synced}; echo begun > /app/begun; {writer}").succeeded()
    msb("exec", dev, "--", "sh", "-c", "while [ ! -s /app/log ]; do :; done; cat /app/log").succeeded()
    assert (work / "below/log").read_text().startswith("one\n")
    msb("stop", dev).succeeded()
    assert (work / "below/log").read_text() == "one\ntwo\n"
    numbers = (share / "log").read_text().splitlines()
    assert numbers == [str(number) for number in range(len(numbers))]

    # It comes back with them, or says why not.
    share.rename(work / "away")
    told = msb("start", dev).failed()
    assert str(share) in told
    assert "No such file" in told
    (work / "away").rename(share)
    msb("start", dev).succeeded()
    assert msb("exec", dev, "--", "cat", "/app/which", "/ro/which").succeeded().text == "src\ninner\n"
    assert b"Read-only" in msb("exec", dev, "--", "touch", "/ro/x").err


def test_the_transport_is_the_machines_choice(msb: Msb, work: Path) -> None:
    script = "grep '^share' /proc/mounts | cut -d' ' -f2,3 | sort; cat /a/which /b/which /c/which /etc/single"
    options = [
        "--cold",
        "-v",
        "./src:/a",
        "-v",
        "./inner:/b",
        "-v",
        "./below:/c",
        "-v",
        "./single:/etc/single",
    ]

    def kinds(*, most: str, watch: str = "") -> str:
        given = [f"{option}{watch}" if option.endswith(":/a") else option for option in options]
        done = msb.with_settings(MSB_VIRTIOFS=most).run("sh", "-c", script, options=given)
        *lines, one, two, three, four = done.succeeded().text.splitlines()
        assert [one, two, three, four] == ["src", "inner", "below", "single"]
        return " ".join(line.removeprefix("/").replace("virtiofs", "device") for line in lines)

    # The machine has places for two; single files, and what the guest is told of, go by a stream.
    assert kinds(most="") == "a device b device c fuse etc/single fuse"
    assert kinds(most="1") == "a device b fuse c fuse etc/single fuse"
    assert kinds(most="0") == "a fuse b fuse c fuse etc/single fuse"
    assert kinds(most="9", watch=":watch") == "a fuse b device c device etc/single fuse"


def test_refusals_name_what_is_wrong(msb: Msb, work: Path) -> None:
    (work / "link").symlink_to("src")
    for option, told in (
        ("./none:/app", "No such file"),
        ("./link:/app", "symbolic link"),
        ("./src:/", "root itself"),
        ("./src:/proc/x", "the sandbox's own"),
        (f"{msb.home}:/app", "the sandboxes' own files"),
    ):
        assert told in msb.run("true", options=["-v", option]).failed(2)
