"""What a guest cannot do to what the host shares with it, and what a broken share does to the guest."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import pytest
from microsandbox_fs import Broker, Device, MalformedMessage

from tests.support.guest import bare_guest, configuration
from tests.support.msb import Msb

pytestmark = pytest.mark.vm

CHANGES = r"""
mount -o remount,rw /app
for change in 'echo x >> /app/file' ': > /app/file' 'rm /app/file' 'mv /app/file /app/g' \
    'chmod 777 /app/file' 'chown 1:1 /app/file' 'touch /app/file' 'touch /app/new' 'mkdir /app/new' \
    'ln -s x /app/new' \
    'ln /app/file /app/new' 'mknod /app/new c 1 3' 'rmdir /app/sub' 'truncate -s 1 /app/file' \
    'dd if=/dev/zero of=/app/file conv=notrunc bs=1 count=1'; do
    sh -c "$change" 2>&1 | grep -q 'Read-only file system' || echo "not refused: $change"
done
cat /app/file
"""

LINKS = r"""
cat /app/passwd | grep -c root-of-the-host
cat /app/secret /app/up /app/deep/secret 2>&1
ln -s ../secret /app/mine; cat /app/mine 2>&1
ls /app/..//app/deep/../../secret 2>&1
mknod /app/disk b 254 0; mkfifo /app/fifo; ls -l /app/disk | cut -c1
cp /bin/busybox /app/suid; chmod 6755 /app/suid; chown 0:0 /app/suid
"""


def test_a_guest_changes_nothing_that_is_read_only_and_follows_no_link_out(msb: Msb, tmp_path: Path) -> None:
    """F09, F12, F14 and links, each through the guest's own kernel."""
    share = tmp_path / "share"
    (share / "sub").mkdir(parents=True)
    (share / "file").write_bytes(b"as it was\n")
    before = (share / "file").stat()
    done = msb.run("sh", "-c", CHANGES, options=["-v", f"{share}:/app:ro"]).succeeded()
    assert done.text == "as it was\n"
    after = (share / "file").stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_size) == (
        before.st_mtime_ns, before.st_mode, before.st_size,
    )  # fmt: skip
    assert sorted(path.name for path in share.iterdir()) == ["file", "sub"]

    (tmp_path / "secret").write_bytes(b"not shared\n")
    (tmp_path / "passwd").write_bytes(b"root-of-the-host\n")
    (share / "passwd").symlink_to(tmp_path / "passwd")
    (share / "secret").symlink_to("../secret")
    (share / "up").symlink_to(tmp_path / "secret")
    (share / "deep").symlink_to("..")
    done = msb.run("sh", "-c", LINKS, options=["-v", f"{share}:/app"]).succeeded()
    assert b"not shared" not in done.out
    assert done.out.splitlines()[0] == b"0"
    assert done.out.count(b"No such file") == 5
    assert done.out.splitlines()[-1] == b"b"
    # What it is on the host: plain files of whoever shares, with no bits that mean anything.
    for name in ("disk", "fifo", "suid"):
        found = (share / name).lstat()
        assert found.st_mode == 0o100600
        assert found.st_uid == share.stat().st_uid

    # What another sandbox has made there gives a restricted one neither devices nor privileges.
    restricted = ["--security", "restricted", "-v", f"{share}:/app"]
    done = msb.run("sh", "-c", "grep ^share /proc/mounts; cat /app/disk", options=restricted)
    (mounted,) = done.out.splitlines()
    assert b"nosuid,nodev" in mounted
    assert b"Permission denied" in done.err


class Nonsense:
    """A broker that answers as it should until it is told to go mad."""

    def __init__(self, port: socket.socket, directory: Path) -> None:
        self.mad = False
        self._port = port
        self._broker = Broker(directory)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with self._port, self._port.makefile("rb") as requests:
            requests.read(12)
            while size := requests.read(4):
                (length,) = struct.unpack("<I", size)
                answer = self._broker.answer(size + requests.read(length - 4)) or b""
                self._port.sendall(b"\xff" * 64 if self.mad else answer)


def serve(port: socket.socket, broker: Broker) -> None:
    """Answer all that comes, after the greeting."""

    def run() -> None:
        with port:
            port.recv(12, socket.MSG_WAITALL)
            try:
                broker.serve(port)
            except MalformedMessage:
                pass  # the machine was killed in the middle of one

    threading.Thread(target=run, daemon=True).start()


def test_a_share_that_breaks_ends_with_eio_and_nothing_else_does(
    shared_home: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def mount(name: str) -> dict[str, object]:
        return {
            "target": f"/{name}".encode(), "kind": "fuse", "port": name, "owner": None, "read_only": False,
            "flags": [],
        }  # fmt: skip

    for name in ("gone", "mad", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"content\n")
    with bare_guest(shared_home, settings, monkeypatch, tmp_path / "upper") as guest:
        gone, good = Broker(tmp_path / "gone"), Broker(tmp_path / "good")
        serve(guest.vm.add_port("gone"), gone)
        serve(guest.vm.add_port("good"), good)
        mad = Nonsense(guest.vm.add_port("mad"), tmp_path / "mad")
        mounts = [mount("gone"), mount("mad"), mount("good")]
        root = {**mount("good"), "target": b"/"}
        assert guest.ask("configure", **configuration(mounts=[root])).startswith("invalid_request: ")
        assert guest.ask("configure", **configuration(mounts=mounts)) is None
        assert guest.run("cat /gone/file /mad/file /good/file") == "content\n" * 3
        # Opened before the shell ends, and so before the brokers break.
        assert guest.run("exec 3< /gone/file 4< /mad/file; sleep 1000 <&3 & sleep 1000 <&4 &") == ""
        gone.stop()
        mad.mad = True
        for name in ("gone", "mad"):
            for command in (f"cat /{name}/new", f"echo > /{name}/new", f"ls /{name}/x/y"):
                assert "Input/output error" in guest.run(command), command
        assert guest.run("echo more >> /good/file; cat /good/file") == "content\nmore\n"
        # They can be unmounted, which ends what carried their messages.
        assert (
            guest.run("kill -9 $(pidof sleep); umount -l /gone; umount -l /mad; mount | grep -c fuse")
            == "1\n"
        )
    assert (tmp_path / "good" / "file").read_bytes() == b"content\nmore\n"


def serve_device(port: socket.socket, broker: Broker, device: Device) -> None:
    """Answer all that comes by the device, as a supervisor does, after the greeting on the port."""

    def run() -> None:
        with port:
            port.recv(12, socket.MSG_WAITALL)
            broker.serve_device(device)
            device.refuse()

    threading.Thread(target=run, daemon=True).start()


def test_a_device_that_breaks_ends_with_eio_and_nothing_else_does(
    shared_home: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("gone", "good")
    mounts: list[dict[str, object]] = []
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"content\n")
        mounts.append(
            {
                "target": f"/{name}".encode(), "kind": "fuse", "port": name, "device": name, "owner": None,
                "read_only": False, "flags": [],
            }
        )  # fmt: skip
    with bare_guest(shared_home, settings, monkeypatch, tmp_path / "upper", shares=names) as guest:
        assert tuple(guest.devices) == names
        gone, good = Broker(tmp_path / "gone"), Broker(tmp_path / "good")
        serve_device(guest.vm.add_port("gone"), gone, guest.devices["gone"])
        serve_device(guest.vm.add_port("good"), good, guest.devices["good"])
        assert guest.ask("configure", **configuration(mounts=mounts)) is None
        assert guest.run("mount | grep -c virtiofs; cat /gone/file /good/file") == "2\n" + "content\n" * 2
        assert guest.run("sleep 1000 < /gone/file &") == ""
        gone.stop()
        for command in ("cat /gone/new", "echo > /gone/new", "ls /gone/x/y"):
            assert "Input/output error" in guest.run(command), command
        assert guest.run("echo more >> /good/file; cat /good/file") == "content\nmore\n"
        # Memory that is asked to be forgotten, and pages that are written.
        assert guest.run("echo 3 > /proc/sys/vm/drop_caches; cat /good/file | wc -l") == "2\n"
        told = guest.run("kill -9 $(pidof sleep); umount -l /gone; mount | grep -c virtiofs")
        assert told == "1\n"
    assert (tmp_path / "good" / "file").read_bytes() == b"content\nmore\n"


def test_a_guest_that_mounts_a_device_by_itself_gets_no_more(msb: Msb, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "file").write_text("content\n")
    script = """
umount /app && mkdir /other && mount -t virtiofs share0 /other && grep -c ' /other virtiofs rw' /proc/mounts
echo > /other/new; rm /other/file; mkdir /other/directory; echo >> /other/file
cat /other/file; umount /other; mount -t virtiofs share0 /other; cat /other/file
mount -t virtiofs share1 /app || echo no more
"""
    done = msb.run("sh", "-c", script, options=["--cold", "-v", f"{share}:/app:ro"])
    assert done.text.splitlines() == ["1", "content", "content", "no more"]
    assert done.err.count(b"Read-only file system") == 4
    assert [entry.name for entry in share.iterdir()] == ["file"]
