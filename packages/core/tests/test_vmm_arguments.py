"""What the QEMU driver hands over: descriptors instead of paths, and only sane machines."""

import fcntl
import os
import re
from pathlib import Path

import pytest
from microsandbox_core.errors import BootFailed, SpecInvalid
from microsandbox_core.vmm import Disk, DiskFormat, Isolation, VmSpec
from microsandbox_core.vmm._monitor import Attached
from microsandbox_core.vmm._qemu import Qemu, _disk_arguments, _exchangeable, _flat
from microsandbox_core.vmm._vmdk import Extent, read_extents, write_descriptor

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="twoGbMaxExtentFlat"
RW 8 FLAT "fsmeta.erofs" 0
RW 16 FLAT "../../layers/one.erofs" 0
"""


def image(directory: Path) -> Path:
    (directory / "images" / "x").mkdir(parents=True)
    (directory / "layers").mkdir()
    (directory / "images" / "x" / "fsmeta.erofs").write_bytes(b"\0" * 4096)
    (directory / "layers" / "one.erofs").write_bytes(b"\1" * 8192)
    descriptor = directory / "images" / "x" / "image.vmdk"
    descriptor.write_text(DESCRIPTOR)
    return descriptor


def test_extents_are_read_relative_to_the_descriptor(tmp_path: Path) -> None:
    descriptor = image(tmp_path)
    assert read_extents(descriptor) == (
        Extent(descriptor.parent / "fsmeta.erofs", 8, 0),
        Extent(descriptor.parent / "../../layers/one.erofs", 16, 0),
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "d.vmdk"
    path.write_bytes(write_descriptor([("/dev/fdset/3", 8, 0), ("/dev/fdset/4", 1 << 40, 7)]))
    assert read_extents(path) == (
        Extent(Path("/dev/fdset/3"), 8, 0),
        Extent(Path("/dev/fdset/4"), 1 << 40, 7),
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"KDMV\x01\x00\x00\x00",
        b"\xff\xfe",
        b"# Disk DescriptorFile\nversion=1\n",
        b'# Disk DescriptorFile\nRW 8 SPARSE "x" 0\n',
        b'# Disk DescriptorFile\nRW -8 FLAT "x" 0\n',
        b"# Disk DescriptorFile\n" + b"#" * (1 << 20),
    ],
)
def test_what_is_not_such_a_descriptor_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.vmdk"
    path.write_bytes(content)
    with pytest.raises(SpecInvalid, match=r"d\.vmdk"):
        read_extents(path)


def test_a_vmdk_reaches_qemu_without_a_path(tmp_path: Path) -> None:
    files: list[int] = []
    try:
        disk = Disk(path=image(tmp_path), format=DiskFormat.VMDK, read_only=True)
        arguments = _disk_arguments(1, disk, files)
        assert not any(str(tmp_path) in argument for argument in arguments)
        rewritten = os.pread(files[-1], 4096, 0).decode()
        assert f'RW 8 FLAT "/dev/fdset/{files[0]}" 0' in rewritten
        assert f'RW 16 FLAT "/dev/fdset/{files[1]}" 0' in rewritten
        # A set entry serves only the access mode it was opened with.
        assert {fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE for number in files} == {os.O_RDONLY}
        assert "read-only=on" in arguments[-3]
    finally:
        for descriptor in files:
            os.close(descriptor)


def test_a_vmdk_cannot_be_writable(tmp_path: Path) -> None:
    with pytest.raises(SpecInvalid, match="read-only"):
        _disk_arguments(1, Disk(path=image(tmp_path), format=DiskFormat.VMDK), [])


def test_a_scratch_disk_need_not_be_flushed_and_others_must(tmp_path: Path) -> None:
    path = tmp_path / "upper"
    path.write_bytes(b"")
    for scratch in (True, False):
        files: list[int] = []
        arguments = _disk_arguments(2, Disk(path=path, scratch=scratch), files)
        assert any("cache.no-flush=on" in argument for argument in arguments) is scratch
        os.close(files[0])


def test_disks_that_come_later_are_those_that_would_have_come_at_once(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.write_bytes(b"")
    disks = (
        Disk(path=image(tmp_path), format=DiskFormat.VMDK, read_only=True),
        Disk(path=upper, scratch=True),
    )
    files: list[int] = []
    attached: list[Attached] = []
    try:
        spec = VmSpec(kernel=tmp_path, boot_disk=tmp_path, disks=disks)
        arguments = _exchangeable(spec, files, attached)
        for number, (disk, later) in enumerate(zip(disks, attached, strict=True), start=1):
            at_once = _disk_arguments(number, disk, files)
            # Their descriptors have other numbers, and the node another name.
            given, wanted = (re.sub(r"fdset/\d+", "", text) for text in (_flat(later.options), at_once[-3]))
            assert given.replace("node-name=under", "node-name=disk") == wanted
            assert at_once[-1] in arguments
    finally:
        for descriptor in files:
            os.close(descriptor)


@pytest.mark.parametrize(
    "spec",
    [
        {"vcpus": 0},
        {"vcpus": 256},
        {"memory_mib": 0},
        {"memory_mib": 63},
        {"memory_mib": 1 << 21},
        {"disks": (Disk(path=Path("x")),) * 5},
    ],
)
def test_machines_that_cannot_be_built_are_refused_before_anything_runs(
    tmp_path: Path, spec: dict[str, object]
) -> None:
    with pytest.raises(SpecInvalid):
        Qemu(tmp_path / "no-such-qemu", kvm=False).start(
            VmSpec(kernel=tmp_path, boot_disk=tmp_path, **spec)  # type: ignore[arg-type]
        )


def test_a_missing_disk_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(BootFailed, match="no-such-disk") as caught:
        Qemu(tmp_path / "qemu", kvm=False).start(
            VmSpec(kernel=tmp_path / "k", boot_disk=tmp_path / "no-such-disk")
        )
    assert caught.value.stage == "spawn"
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_qemu_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "boot"
    disk.write_bytes(b"\0" * 4096)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(BootFailed, match="no-such-qemu") as caught:
        Qemu(tmp_path / "no-such-qemu", kvm=False).start(
            VmSpec(kernel=disk, boot_disk=disk, shares=("share0", "share1"))
        )
    assert caught.value.stage == "spawn"
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize(
    ("disks", "most", "room"), [(0, "", 4), (2, "", 2), (4, "", 0), (2, "1", 1), (2, "0", 0), (3, "9", 1)]
)
def test_shares_take_the_places_that_disks_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disks: int, most: str, room: int
) -> None:
    monkeypatch.setenv("MSB_VIRTIOFS", most)
    disk = tmp_path / "disk"
    disk.write_bytes(b"\0" * 4096)
    qemu = tmp_path / "qemu"
    qemu.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    qemu.chmod(0o755)
    tags = tuple(f"share{number}" for number in range(9))
    spec = VmSpec(kernel=disk, boot_disk=disk, disks=(Disk(path=disk),) * disks, shares=tags)
    vm = Qemu(qemu, kvm=False).start(spec)
    with vm.agent, vm.console, vm.network:
        vm.reap()
        told = vm.console.makefile("r").read()
    assert tuple(vm.shares) == tags[:room]
    for end in vm.shares.values():
        end.close()
    assert told.count("\nvhost-user-fs-device,") == room
    # Whoever maps it need not fear that it becomes shorter.
    sealed = re.search("^memory-backend-memfd,.*,share=on,seal=on$", told, re.MULTILINE)
    assert (sealed is not None) == (room > 0)


def test_isolation_says_what_runs_the_guest(tmp_path: Path) -> None:
    assert Qemu(tmp_path, kvm=True).isolation is Isolation.KVM
    assert Qemu(tmp_path, kvm=False).isolation is Isolation.EMULATED
