"""Doctor: every missing piece is named with its fix, and the verdict follows from the checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from microsandbox_core.errors import CoreError, KernelError
from microsandbox_core.host import doctor
from microsandbox_core.host.doctor import Check, Report, Status
from microsandbox_core.host.machine import Machine
from microsandbox_core.vmm._probe import KvmState, KvmVerdict

_MACHINE = Machine(
    "Linux", "x86_64", "debian", "Debian GNU/Linux 12", "bookworm", has_apt=True, is_root=False
)
_KVM = KvmVerdict(KvmState.WORKS, "a guest booted under KVM", None)
_NO_KVM = KvmVerdict(KvmState.MISSING, "/dev/kvm does not exist", "enable virtualization")


class Host:
    """A machine made of a temporary directory, complete until a test takes something away."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.home.mkdir(mode=0o700)
        self.programs = root / "bin"
        self.programs.mkdir()
        self.program("qemu-system-x86_64", "echo 'QEMU emulator version 7.2.22 (Debian)'")
        self.program("mke2fs", "echo 'mke2fs 1.47.0 (5-Feb-2023)' >&2")
        self.library = self.home / "lib" / "libkrunfw.so.5"
        self.library.parent.mkdir()
        self.library.touch()
        self.agentd = root / "agentd"
        self.agentd.write_bytes(b"\x7fELF")
        self.probed = 0
        self.verdict = _NO_KVM

    def program(self, name: str, script: str) -> None:
        file = self.programs / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def _probe(self) -> KvmVerdict:
        self.probed += 1
        return self.verdict

    def examine(self, machine: Machine = _MACHINE) -> Report:
        return doctor.examine(self.home, kvm_probe=self._probe, machine=machine, agentd=self.agentd)

    def check(self, name: str) -> Check:
        return next(check for check in self.examine().checks if check.name == name)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host(tmp_path)
    monkeypatch.setenv("PATH", str(found.programs))
    for name in ("MSB_QEMU", "MSB_LIBKRUNFW", "MSB_KERNEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("microsandbox_core.host.libkrunfw.library_directories", list)

    def mke2fs() -> str:
        # It is also looked for outside PATH, where a test machine has one.
        if not (found.programs / "mke2fs").exists():
            raise CoreError("mke2fs is not installed")
        return str(found.programs / "mke2fs")

    def release(library: Path) -> str:
        if library.read_bytes() == b"broken":
            raise KernelError(f"{library} is not a libkrunfw")
        return "6.12.91"

    monkeypatch.setattr(doctor, "mke2fs", mke2fs)
    monkeypatch.setattr(doctor, "kernel_release", release)
    # The length of pytest's directories is no fact about the machine.
    monkeypatch.setattr(doctor, "_LONGEST_HOME", 4096)
    return found


def test_a_complete_machine_without_kvm_is_ready_and_says_what_emulation_means(host: Host) -> None:
    report = host.examine()
    assert report.ready
    assert (report.vmm, report.isolation) == ("qemu", "emulated")
    assert "outside QEMU's own security guarantee" in report.summary
    kvm = host.check("kvm")
    assert kvm.status is Status.WARNING
    assert kvm.fix == "enable virtualization"
    assert [check.name for check in report.checks if check.status is not Status.OK] == ["kvm"]


def test_a_machine_whose_kvm_booted_a_guest(host: Host) -> None:
    host.verdict = _KVM
    report = host.examine()
    assert report.isolation == "kvm"
    assert report.summary == "ready: qemu, isolated by KVM"
    assert all(check.status is Status.OK and check.fix is None for check in report.checks)


@pytest.mark.parametrize("state", [KvmState.DENIED, KvmState.BOOT_FAILED])
def test_a_kvm_that_boots_nothing_is_not_counted_as_isolation(host: Host, state: KvmState) -> None:
    host.verdict = KvmVerdict(state, "seen", "fix")
    assert host.examine().isolation == "emulated"
    assert host.check("kvm").seen.startswith("seen; without KVM")


def test_every_missing_piece_is_named_at_once_with_its_fix(host: Host) -> None:
    (host.programs / "qemu-system-x86_64").unlink()
    (host.programs / "mke2fs").unlink()
    host.library.unlink()
    host.agentd.unlink()
    report = host.examine()
    missing = [check for check in report.checks if check.status is Status.MISSING]
    assert [check.name for check in missing] == ["qemu", "mke2fs", "guest kernel", "agentd"]
    assert all(check.fix for check in missing)
    assert report.summary == "not ready: qemu, mke2fs, guest kernel, agentd"
    assert (report.vmm, report.isolation, report.ready) == (None, None, False)
    assert host.probed == 0, "no guest is booted on a machine that cannot boot one"


def test_json_has_stable_names(host: Host) -> None:
    found = json.loads(json.dumps(host.examine().to_dict()))
    assert sorted(found) == ["checks", "isolation", "ready", "summary", "vmm"]
    assert [check["name"] for check in found["checks"]] == [
        "machine",
        "python",
        "state directory",
        "disk space",
        "qemu",
        "mke2fs",
        "guest kernel",
        "agentd",
        "confinement",
        "host limits",
        "kvm",
    ]
    assert all(sorted(check) == ["fix", "name", "seen", "status"] for check in found["checks"])
    assert {check["status"] for check in found["checks"]} <= {"ok", "warning", "missing"}


def test_another_architecture_cannot_run_sandboxes(host: Host) -> None:
    report = host.examine(replace(_MACHINE, architecture="aarch64"))
    assert report.checks[0].status is Status.MISSING
    assert "aarch64" in report.checks[0].seen
    assert not report.ready


def test_the_state_directory(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host.check("state directory") == Check("state directory", Status.OK, str(host.home))
    host.home.chmod(0o755)
    open_to_others = host.check("state directory")
    assert open_to_others.status is Status.WARNING
    assert "mode 0755" in open_to_others.seen
    host.home.chmod(0o700)
    monkeypatch.setattr(doctor, "_LONGEST_HOME", 10)
    assert host.check("state directory").status is Status.WARNING
    host.home = host.home / "not there"
    assert host.check("state directory").status is Status.MISSING
    assert host.check("disk space").status is Status.OK, "told for the directory above"


@pytest.mark.parametrize(
    ("low", "full", "status"),
    [(0, 0, Status.OK), (1 << 62, 0, Status.WARNING), (1 << 62, 1 << 62, Status.MISSING)],
)
def test_disk_space(host: Host, monkeypatch: pytest.MonkeyPatch, low: int, full: int, status: Status) -> None:
    monkeypatch.setattr(doctor, "_LOW_SPACE", low)
    monkeypatch.setattr(doctor, "_NO_SPACE", full)
    assert host.check("disk space").status is status


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("echo 'QEMU emulator version 7.2.0'", Status.OK),
        ("echo 'QEMU emulator version 10.1.0'", Status.OK),
        ("echo 'QEMU emulator version 6.2.0 (v6.2.0)'", Status.WARNING),
        ("echo 'something else'", Status.MISSING),
        ("exit 1", Status.MISSING),
    ],
)
def test_the_version_of_qemu(host: Host, script: str, status: Status) -> None:
    host.program("qemu-system-x86_64", script)
    assert host.check("qemu").status is status


def test_a_qemu_setting_that_names_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSB_QEMU", "/nowhere/qemu")
    check = host.check("qemu")
    assert check.status is Status.MISSING
    assert "/nowhere/qemu" in check.seen
    assert check.fix == "correct MSB_QEMU"


def test_an_mke2fs_that_does_not_run(host: Host) -> None:
    host.program("mke2fs", "exit 127")
    assert host.check("mke2fs").status is Status.MISSING


def test_the_guest_kernel(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert host.check("guest kernel").seen == f"Linux 6.12.91 in {host.library}"
    host.library.write_bytes(b"broken")
    assert host.check("guest kernel").status is Status.MISSING
    monkeypatch.setenv("MSB_LIBKRUNFW", str(tmp_path / "gone"))
    assert host.check("guest kernel").fix == "correct MSB_LIBKRUNFW"
    monkeypatch.setenv("MSB_KERNEL", str(tmp_path / "vmlinux"))
    assert host.check("guest kernel").fix == "correct MSB_KERNEL"
    (tmp_path / "vmlinux").touch()
    assert host.check("guest kernel").status is Status.OK


def test_an_agentd_that_is_no_program(host: Host) -> None:
    host.agentd.write_bytes(b"#!/bin/sh\n")
    assert host.check("agentd").status is Status.MISSING


def test_a_probe_that_fails_leaves_emulation(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KernelError("the kernel has no PVH entry note", hint="use another")

    monkeypatch.setattr(doctor, "device_verdict", lambda: None)
    monkeypatch.setattr(doctor, "ensure_kernel", fail)
    report = doctor.examine(host.home, machine=_MACHINE, agentd=host.agentd)
    assert report.ready
    assert report.isolation == "emulated"
    assert report.checks[-1].fix == "use another"
