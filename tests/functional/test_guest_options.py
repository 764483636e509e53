"""What a sandbox is given inside: scripts, a shell, memory to mount, names, a signal to stop with, room."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.images import tar_of, write_layout
from tests.support.msb import Msb

pytestmark = pytest.mark.vm


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """A name whose sandbox, if the test makes one, is removed."""
    yield "dev"
    msb("rm", "--force", "dev")


# ---------------------------------------------------------------------------------------------- scripts


def test_scripts_are_on_the_path_as_they_were_given(msb: Msb, tmp_path: Path) -> None:
    (tmp_path / "setup.sh").write_bytes(b"#!/bin/sh\necho from a file $1\n")
    done = msb.run(
        "sh", "-c", r"greet; exact; setup now; cd /.msb/scripts; head -n 1 greet; ls -l greet",
        options=[
            "--shell", "/bin/ash", "--script", r"greet=echo one\necho \'two\'",
            "--script-raw", b"exact=#!/bin/sh\nprintf '\xff\\n'\n",
            "--script-path", f"setup:{tmp_path}/setup.sh",
        ],
    ).succeeded()  # fmt: skip
    *lines, listed = done.out.splitlines()
    assert lines == [b"one", b"two", b"\xff", b"from a file now", b"#!/bin/ash"]
    assert listed.startswith(b"-rwxr-xr-x    1 root     root")
    # Before the image's own programs.
    assert msb.run("ls", options=["--script", "ls=echo mine"]).succeeded().text == "mine\n"


def test_scripts_are_read_only_and_come_back_with_every_start(msb: Msb, dev: str) -> None:
    msb("create", "busybox", "-n", dev, "--script", "hi=echo hi").succeeded()
    refused = msb("exec", dev, "--", "sh", "-c", "echo evil > /.msb/scripts/hi")
    assert b"Read-only file system" in refused.err
    # Root may unmount them, in this life.
    msb("exec", dev, "--", "umount", "/.msb/scripts").succeeded()
    msb("exec", dev, "--", "sh", "-c", "echo 'echo evil' > /.msb/scripts/hi").succeeded()
    msb("restart", dev).succeeded()
    assert msb("exec", dev, "--", "hi").succeeded().text == "hi\n"
    (found,) = json.loads(msb("inspect", dev).succeeded().out)
    assert found["config"]["scripts"] == ["hi"]


@pytest.mark.parametrize(
    "options", [["--script", "a/b=x"], ["--script", "a"], ["--script-path", "a:/nonexistent"],
                ["--shell", "sh"], ["--script", "a=x", "--script-raw", "a=y"], ["--tmpfs", "/proc/x"],
                ["--tmpfs", "x:1M"],
                ["--stop-signal", "SIGFOO"], ["--root-disk", "1K"], ["--init-arg", "x"]],
)  # fmt: skip
def test_what_cannot_be_is_one_error_before_anything_starts(msb: Msb, options: list[str]) -> None:
    msb.run("true", options=options).failed(2)
    assert msb.host.running() == []


# ------------------------------------------------------------------------------------------------ shell


def test_the_shell_is_what_people_get(msb: Msb, dev: str) -> None:
    msb("create", "busybox", "-n", dev, "--shell", "/bin/ash").succeeded()
    shown = msb("exec", "-t", dev, stdin=b"echo $0\nexit 3\n")
    assert shown.code == 3
    assert b"/bin/ash" in shown.out


# ------------------------------------------------------------------------------------------------ tmpfs


def test_memory_is_mounted_where_and_as_it_was_asked(msb: Msb, dev: str) -> None:
    msb(
        "create", "busybox", "-n", dev, "--tmpfs", "/cache:16M", "--tmpfs", "/var/tmp",
        "--tmpfs", "/cache/in/it:1M,mode=700,ro,noexec",
    ).succeeded()  # fmt: skip
    look = "grep -E ' (/cache|/var/tmp|/cache/in/it) ' /proc/mounts; stat -c '%a %n' /cache /cache/in/it"
    for _ in range(2):
        *mounts, cache, inner = msb("exec", dev, "--", "sh", "-c", look).succeeded().text.splitlines()
        options = {line.split()[1]: set(line.split()[3].split(",")) for line in mounts}
        assert {"rw", "nosuid", "nodev", "size=16384k"} <= options["/cache"]
        assert {"rw", "nosuid", "nodev"} <= options["/var/tmp"]
        assert {"ro", "nosuid", "nodev", "noexec", "size=1024k", "mode=700"} <= options["/cache/in/it"]
        assert (cache, inner) == ("1777 /cache", "700 /cache/in/it")
        full = msb("exec", dev, "--", "sh", "-c", "dd if=/dev/zero of=/cache/x bs=1M count=20")
        assert b"No space left" in full.err
        msb("restart", dev).succeeded()
    assert msb("exec", dev, "--", "ls", "/cache/x").code == 1


def test_a_link_of_the_image_does_not_move_a_mount(msb: Msb, tmp_path: Path) -> None:
    import tarfile

    link = tarfile.TarInfo("cache")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    layout = write_layout(tmp_path / "image", ImageConfig(cmd=("sh",)), [tar_of([(link, b"")])])
    for path in ("/cache", "/cache/x"):
        done = msb("run", "--tmpfs", path, f"oci:{layout}", "--", "true")
        assert f"tmpfs: {path}: a part of the path is a symbolic link" in done.failed()
    msb("run", f"oci:{layout}", "--", "ls", "/etc/passwd").succeeded()


# --------------------------------------------------------------------------------------- names and places


def test_the_host_name_is_everywhere(msb: Msb) -> None:
    done = msb.run("sh", "-c", "hostname; cat /etc/hostname; hostname -i", options=["-H", "My-box-1"])
    assert done.succeeded().text.split() == ["My-box-1", "My-box-1", "127.0.1.1"]
    for wrong in ("a.b", "-a", "a-", "a_b", "a" * 64, ""):
        msb.run("true", options=["--hostname=" + wrong]).failed(2)


def test_a_working_directory_is_made_if_it_is_missing(msb: Msb, tmp_path: Path) -> None:
    assert msb.run("pwd", options=["-w", "/new/place"]).succeeded().text == "/new/place\n"
    layout = write_layout(tmp_path / "image", ImageConfig(cmd=("pwd",), working_dir="/srv/app"))
    assert msb("run", f"oci:{layout}").succeeded().text == "/srv/app\n"
    # One of a command alone is not: who names it wants what is there.
    assert "/etc/passwd" in msb.run("pwd", options=["-w", "/etc/passwd"]).failed()


def test_the_root_directory_is_the_images_until_it_is_changed(msb: Msb, dev: str, tmp_path: Path) -> None:
    root = tarfile.TarInfo("./")
    root.type, root.mode, root.uid, root.gid, root.mtime = tarfile.DIRTYPE, 0o751, 5, 6, 1_000_000_000
    layout = write_layout(tmp_path / "image", ImageConfig(), [tar_of([(root, b"")])])
    msb("create", f"oci:{layout}", "-n", dev).succeeded()
    look = ["exec", dev, "--", "stat", "-c", "%a %u %g %Y", "/"]
    assert msb(*look).succeeded().text == "751 5 6 1000000000\n"
    msb("exec", dev, "--", "sh", "-c", "chmod 755 / && touch -d @7 /").succeeded()
    msb("restart", dev).succeeded()
    assert msb(*look).succeeded().text == "755 5 6 7\n"


def test_the_root_disk_has_the_size_that_was_asked_for(msb: Msb, dev: str) -> None:
    msb("create", "busybox", "-n", dev, "--root-disk", "64M").succeeded()
    full = msb("exec", dev, "--", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=100")
    assert b"No space left" in full.err
    msb("exec", dev, "--", "sh", "-c", "rm /big; echo kept > /small").succeeded()
    msb("restart", dev).succeeded()
    assert msb("exec", dev, "--", "cat", "/small").succeeded().text == "kept\n"
    (found,) = json.loads(msb("inspect", dev).succeeded().out)
    assert (found["upper"]["size"], found["config"]["root_disk"]) == (64 << 20, 64 << 20)


# ------------------------------------------------------------------------------------------- stop signal

WAITS = "trap 'echo $SIGNAL > /told; exit' {signal}; echo up; while :; do sleep 1 & wait; done"


@pytest.mark.parametrize("from_image", [True, False])
def test_processes_are_asked_with_the_signal_that_was_given(
    msb: Msb, dev: str, tmp_path: Path, from_image: bool
) -> None:
    layout = write_layout(tmp_path / "image", ImageConfig(stop_signal="SIGUSR1" if from_image else "SIGUSR2"))
    options = [] if from_image else ["--stop-signal", "SIGUSR1"]
    msb("create", f"oci:{layout}", "-n", dev, *options).succeeded()
    for _ in range(2):
        script = WAITS.format(signal="USR1")
        with msb.start("exec", "-e", "SIGNAL=USR1", dev, "--", "sh", "-c", script) as running:
            assert running.line() == b"up\n"
            msb("stop", "-t", "10m", dev, timeout=300).succeeded()
        msb("start", dev).succeeded()
        assert msb("exec", dev, "--", "cat", "/told").succeeded().text == "USR1\n"
        msb("exec", dev, "--", "rm", "/told").succeeded()


# ----------------------------------------------------------------------------------------- in the background


def test_a_sandbox_in_the_background_ends_with_its_command(msb: Msb, dev: str) -> None:
    work = "mkfifo /go; echo up; cat /go; echo kept > /x; exit 3"
    done = msb("run", "-d", "-n", dev, "busybox", "--", "sh", "-c", work)
    assert done.succeeded().text == "dev\n"
    with msb.start("logs", "-f", dev) as following:
        assert following.line() == b"up\n"
        msb("exec", dev, "--", "sh", "-c", "echo now > /go").succeeded()
        assert following.finish().text == "now\n"
    waited = msb("wait", dev)
    assert (waited.code, waited.text) == (3, "dev: stopped: its command ended with code 3\n")
    msb("start", dev).succeeded()
    assert msb("exec", dev, "--", "cat", "/x").succeeded().text == "kept\n"


def test_a_command_in_the_background_of_a_sandbox(msb: Msb, dev: str) -> None:
    msb("create", "busybox", "-n", dev).succeeded()
    msb("exec", dev, "--", "mkfifo", "/go").succeeded()
    work = "id -un; pwd; echo $MODE; cat /go"
    options = ("-u", "nobody", "-w", "/tmp", "-e", "MODE=test")
    assert msb("exec", "-d", *options, dev, "--", "sh", "-c", work).succeeded().text == "dev\n"
    msb("exec", dev, "--", "sh", "-c", "echo now > /go").succeeded()
    with msb.start("logs", "-f", dev) as following:
        assert [following.line() for _ in range(4)] == [b"nobody\n", b"/tmp\n", b"test\n", b"now\n"]
        # The sandbox runs on, and a command has its time although nobody waits for it.
        msb("exec", "--detach", "--timeout", "300ms", dev, "--", "sleep", "1000").succeeded()
        ended = "until ! pidof sleep; do :; done; echo gone"
        assert msb("exec", dev, "--", "sh", "-c", ended).succeeded().text.endswith("gone\n")
    assert "nothing: not found" in msb("exec", "-d", dev, "--", "nothing").failed(127)
    assert "no command" in msb("exec", "-d", dev).failed(2)
    # One that is started for a command stops with it, also if there is none.
    msb("stop", dev).succeeded()
    assert msb("exec", "-d", dev, "--", "sh", "-c", "cat /go; exit 3").succeeded().text == "dev\n"
    msb("exec", dev, "--", "sh", "-c", "echo again > /go")
    waited = msb("wait", dev)
    assert (waited.code, waited.text) == (3, "dev: stopped: its command ended with code 3\n")
    assert "nothing: not found" in msb("exec", "-d", dev, "--", "nothing").failed(127)
    assert msb("wait", dev).succeeded().text == "dev: stopped: it was asked to stop\n"


def test_an_unnamed_one_in_the_background_is_gone_with_its_command(msb: Msb) -> None:
    name = msb("run", "-d", "busybox", "--", "sh", "-c", "mkfifo /go; cat /go").succeeded().text.strip()
    assert name.startswith("run-")
    msb("exec", name, "--", "sh", "-c", "until [ -p /go ]; do :; done; echo now > /go")
    msb.host.wait_empty(within=60)
    assert msb("ls", "-q").text == ""
    # However fast it is, and if there is none.
    msb("run", "-d", "busybox", "--", "true").succeeded()
    msb.host.wait_empty(within=60)
    assert "nothing: not found" in msb("run", "-d", "busybox", "--", "nothing").failed(127)
    assert msb("ls", "-q").text == ""
