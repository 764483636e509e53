"""`--rlimit` and `--user`: what a command may use, and who it is."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.images import tar_of, write_layout
from tests.support.msb import Msb

pytestmark = pytest.mark.vm

PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n33:x:77:78::/odd:/bin/sh\n"
GROUP = b"root:x:0:\napps:x:1001:\nwheel:x:10:root,app\nextra:x:998:other,app\n"

# The kernel's name of each, and values that differ from what is set without.
LIMITS = {
    "as": "Max address space", "core": "Max core file size", "cpu": "Max cpu time",
    "data": "Max data size", "fsize": "Max file size", "locks": "Max file locks",
    "memlock": "Max locked memory", "msgqueue": "Max msgqueue size", "nice": "Max nice priority",
    "nofile": "Max open files", "nproc": "Max processes", "rss": "Max resident set",
    "rtprio": "Max realtime priority", "rttime": "Max realtime timeout",
    "sigpending": "Max pending signals", "stack": "Max stack size",
}  # fmt: skip


@pytest.fixture
def reference(msb: Msb, tmp_path: Path) -> Iterator[str]:
    """Busybox with users and groups of its own."""
    files = [(tarfile.TarInfo("etc/passwd"), PASSWD), (tarfile.TarInfo("etc/group"), GROUP)]
    msb("load", f"oci:{write_layout(tmp_path / 'users', ImageConfig(), [tar_of(files)])}").succeeded()
    yield "made"
    msb("rmi", "made").succeeded()


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """A running sandbox with limits."""
    limits = ("--rlimit", "nofile=100:200", "--rlimit", "core=0")
    msb("create", *limits, "busybox", "--name", "dev").succeeded()
    yield "dev"
    msb("rm", "--force", "dev").succeeded()


def shown(text: str, name: str) -> list[str]:
    """Soft and hard limit as /proc/PID/limits has them."""
    (line,) = (line for line in text.splitlines() if line.startswith(LIMITS[name]))
    return line.removeprefix(LIMITS[name]).split()[:2]


def limits_in(msb: Msb, *arguments: str) -> str:
    return msb("exec", *arguments, "--", "cat", "/proc/self/limits").succeeded().text


@pytest.mark.parametrize("user", ["0", "1000"])
def test_every_limit_is_set_before_privileges_are_given_up(msb: Msb, user: str) -> None:
    options: list[str] = []
    wanted = {}
    for number, name in enumerate(LIMITS):
        soft, hard = (10, 11 + number) if name in ("nice", "rtprio") else (1 << 29, (1 << 29) + number)
        if name == "nofile":
            soft, hard = 50, 60
        options += ["--rlimit", f"{name}={soft}:{hard}"]
        wanted[name] = [str(soft), str(hard)]
    done = msb("run", *options, "--user", user, "busybox", "--", "cat", "/proc/self/limits").succeeded()
    assert {name: shown(done.text, name) for name in LIMITS} == wanted


def test_a_limit_bites(msb: Msb) -> None:
    script = "dd if=/dev/zero of=/tmp/file bs=1k count=100 2>/dev/null; wc -c < /tmp/file"
    done = msb("run", "--rlimit", "fsize=4096", "busybox", "--", "sh", "-c", script)
    assert done.text == "4096\n"


def test_one_number_is_both_and_none_is_unlimited(msb: Msb) -> None:
    options = ("--rlimit", "core=unlimited", "--rlimit", "nofile=77", "--rlimit", "cpu=5:-1")
    text = msb("run", *options, "busybox", "--", "cat", "/proc/self/limits").succeeded().text
    assert shown(text, "core") == ["unlimited", "unlimited"]
    assert shown(text, "nofile") == ["77", "77"]
    assert shown(text, "cpu") == ["5", "unlimited"]


def test_an_execs_limits_go_before_the_sandboxs(msb: Msb, dev: str) -> None:
    text = limits_in(msb, dev)
    assert (shown(text, "nofile"), shown(text, "core")) == (["100", "200"], ["0", "0"])
    text = limits_in(msb, "--rlimit", "nofile=300", "--rlimit", "nproc=7", dev)
    assert shown(text, "nofile") == ["300", "300"], "above the sandbox's: it is agentd that sets it"
    assert (shown(text, "core"), shown(text, "nproc")) == (["0", "0"], ["7", "7"])
    msb("restart", dev).succeeded()
    assert shown(limits_in(msb, dev), "nofile") == ["100", "200"]


def test_what_cannot_be_is_said(msb: Msb, dev: str) -> None:
    for limit, complaint in (
        ("files=3", "'files'"),
        ("nofile", "'nofile'"),
        ("nofile=", "'nofile='"),
        ("nofile=many", "'many'"),
        ("nofile=20:10", "soft limit 20 is above the hard one 10"),
        ("nofile=1:2:3", "'2:3'"),
    ):
        assert complaint in msb("exec", "--rlimit", limit, dev, "--", "true").failed(2)
        assert complaint in msb("run", "--rlimit", limit, "busybox", "--", "true").failed(2)
    found = msb("exec", "--rlimit", "nofile=2000000", dev, "--", "true").failed(125, hint=False)
    assert "the hard limit of nofile is above the guest's maximum" in found


def test_users_and_groups_are_those_of_the_image(msb: Msb, reference: str) -> None:
    msb("create", reference, "--name", "users").succeeded()
    try:
        for user, wanted in (
            ("root", "0 0 0 10 /root"),
            ("app", "1000 1001 1001 10 998 /home/app"),
            ("1000", "1000 1001 1001 10 998 /home/app"),
            ("app:extra", "1000 998 998 /home/app"),
            ("1000:12", "1000 12 12 /home/app"),
            ("4321", "4321 0 0 /"),
            ("4321:8765", "4321 8765 8765 /"),
            # A number is a number, whatever somebody is called.
            ("33", "33 0 0 /"),
        ):
            script = "echo $(id -u) $(id -g) $(id -G) $HOME"
            found = msb("exec", "-u", user, "users", "--", "sh", "-c", script).succeeded().text.strip()
            assert found == wanted, user
        for user in ("stranger", "app:strangers"):
            assert user in msb("exec", "-u", user, "users", "--", "true").failed(125)
        found = msb("exec", "-u", "app", "-e", "HOME=/tmp", "users", "--", "sh", "-c", "echo $HOME").text
        assert found == "/tmp\n"
    finally:
        msb("rm", "--force", "users").succeeded()
