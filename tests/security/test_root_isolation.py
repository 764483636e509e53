"""What a guest's root writes stays in its upper: image files, siblings and the host are as before."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.canary import Canary
from tests.support.host import Host
from tests.support.images import tar_of, write_layout
from tests.support.msb import Msb

pytestmark = pytest.mark.vm

# Everything a guest's root can think of: files, the raw disks, the partition table, a remount.
VANDAL = """
echo gone > /etc/passwd
rm -rf /bin/sh /home /usr/local /var
for disk in /dev/vda /dev/vdb; do
  echo garbage > $disk
  dd if=/dev/zero of=$disk bs=4096 count=16 conv=notrunc
  blockdev --setrw $disk
  dd if=/dev/zero of=$disk bs=4096 seek=1 count=16 conv=notrunc
done
mount -o remount,rw /
rm -rf /etc /root /sbin
echo done
"""


def test_the_cache_is_byte_for_byte_as_before(msb: Msb, host: Host) -> None:
    before = host.digests("cache")
    times = {path: path.stat().st_mtime_ns for path in host.layers()}
    with msb.start("run", "busybox", "--", "busybox", "sh", "-c", VANDAL) as command:
        done = command.finish(b"")
    assert done.text.endswith("done\n"), done.complaint
    assert host.digests("cache") == before
    assert {path: path.stat().st_mtime_ns for path in host.layers()} == times


def test_a_second_sandbox_does_not_see_what_the_first_wrote(msb: Msb, host: Host) -> None:
    script = "rm /usr/local/bin/tour; echo changed > /etc/passwd; touch /only-here; echo up; cat"
    look = "ls / /usr/local/bin; head -n 1 /etc/passwd"
    with msb.start("run", "busybox", "--", "sh", "-c", script) as first:
        assert first.line() == b"up\n"
        seen = msb.run("sh", "-c", look).succeeded().text
        first.finish(b"")
    assert "only-here" not in seen
    assert "tour" in seen
    assert seen.splitlines()[-1].startswith("root:x:0:0")
    assert msb.run("sh", "-c", look).succeeded().text == seen


def test_two_sandboxes_read_the_same_layer_file(msb: Msb, host: Host) -> None:
    with (
        msb.start("run", "busybox", "--", "sh", "-c", "echo up; cat") as first,
        msb.start("run", "busybox", "--", "sh", "-c", "echo up; cat") as second,
    ):
        assert (first.line(), second.line()) == (b"up\n", b"up\n")
        (layer,) = (
            Path(entry["path"]) for entry in json.loads(msb("image", "inspect", "busybox").out)["layers"]
        )
        wanted = (layer.stat().st_dev, layer.stat().st_ino)
        sandboxes = host.running()
        assert len(sandboxes) == 2
        for sandbox in sandboxes:
            assert wanted in sandbox.vmm.identities()
        # And no second copy of it anywhere.
        size = layer.stat().st_size
        assert [p for p in host.home.rglob("*") if p.is_file() and p.stat().st_size == size] == [layer]


def test_everything_but_the_upper_is_open_for_reading_only(msb: Msb, host: Host) -> None:
    with msb.start("run", "busybox", "--", "sh", "-c", "echo up; cat") as command:
        assert command.line() == b"up\n"
        sandbox = host.sandbox()
        writable = set()
        for number, target in sandbox.vmm.descriptors.items():
            flags = next(
                line for line in Path(f"/proc/{sandbox.vmm.pid}/fdinfo/{number}").read_text().splitlines()
                if line.startswith("flags:")
            )  # fmt: skip
            if int(flags.split()[1], 8) & 3 and target.startswith(str(host.home)):
                writable.add(target)
        assert writable == {str(sandbox.directory / "upper.ext4")}


def test_a_hostile_layer_touches_nothing_on_the_host(msb: Msb, canary: Canary, tmp_path: Path) -> None:
    # O01, O02: names that climb, absolute names, a symlink that a later layer writes through
    out = f"{canary.directory}/pwned"
    climb = "../" * 12 + out.lstrip("/")
    link = tarfile.TarInfo("trap")
    link.type, link.linkname = tarfile.SYMTYPE, str(canary.directory)
    layers = [
        tar_of([(tarfile.TarInfo("harmless"), b"yes\n"), (link, b"")]),
        tar_of([(tarfile.TarInfo("trap/inside"), b"through the link\n")]),
    ]
    layout = write_layout(tmp_path / "links", ImageConfig(), layers)
    done = msb(
        "run", f"oci:{layout}", "--", "sh", "-c", "cat /harmless /trap/inside; ls -ld /trap"
    ).succeeded()
    assert done.text.splitlines()[:2] == ["yes", "through the link"]
    assert done.text.splitlines()[2].startswith("d"), "a directory takes the link's place"
    msb("rmi", "made").succeeded()

    for number, name in enumerate((climb, out, f"a/{climb}")):
        layout = write_layout(
            tmp_path / f"climb-{number}", ImageConfig(), [tar_of([(tarfile.TarInfo(name), b"x")])]
        )
        loaded = msb("load", f"oci:{layout}")
        # Refused, or put under the root of the image: both keep the host out of it.
        if loaded.code:
            loaded.failed(125)
        else:
            msb("rmi", "made").succeeded()
    canary.assert_untouched()


def test_the_host_is_not_visible_in_the_guest(msb: Msb, canary: Canary) -> None:
    script = f"ls {canary.directory} /host /mnt 2>&1; cat {canary.secret}; mount; env"
    done = msb.run("sh", "-c", script)
    assert "only for the host" not in done.text
    assert str(msb.home) not in done.text
    assert "9p" not in done.text
    assert "virtiofs" not in done.text
