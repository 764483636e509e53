"""Control groups for VMM and supervisor: with a real kernel, and with sandboxes where this host lets us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_core import cgroup, env

from tests.support.host import Host
from tests.support.msb import Msb
from tests.support.process import Process
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

# Run by the root of a guest, whose kernel has cgroup v2 and nobody else in it.
_SCRIPT = """
import errno, os, sys, time
sys.path.insert(0, "/src")
import cgroup
from cgroup import Limits

place = "/sys/fs/cgroup/delegated"
os.makedirs(f"{place}/main")
with open(f"{place}/main/cgroup.procs", "w") as file:
    file.write("0")
assert cgroup.place(None).directory is None, "not marked as delegated"
os.setxattr(place, "trusted.delegate", b"1")
assert cgroup.place(None).directory == cgroup.place(place).directory == place

def in_child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

def end_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def hog():
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))

def spin():
    while True:
        pass

def supervise():
    vmm = in_child(lambda: time.sleep(1000))
    limits = Limits(32 << 20, 0.5, 20)
    group = cgroup.enter(place, "one", limits, [os.getpid(), vmm])
    assert cgroup.limits_of(group) == limits
    for pid in ("self", vmm):
        assert open(f"/proc/{pid}/cgroup").read().strip() == "0::/delegated/msb-one"
    # memory.max: the one that wants too much is killed, this one is there to tell.
    assert end_of(in_child(hog)) == -9
    # pids.max
    children = []
    try:
        while len(children) < 100:
            children.append(in_child(lambda: time.sleep(1000)))
    except BlockingIOError:
        pass
    assert 10 < len(children) < 20, len(children)
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    # cpu.max
    spinning = in_child(spin)
    while " 0" in next(line for line in open(f"{group}/cpu.stat") if line.startswith("nr_throttled")):
        time.sleep(0.05)
    os.kill(spinning, 9)
    os.waitpid(spinning, 0)
    assert not cgroup.remove(group), "it is not empty"
    os.kill(vmm, 9)
    os.waitpid(vmm, 0)
    cgroup.leave(group)
    assert not os.path.exists(group)

assert end_of(in_child(supervise)) == 0
# One that was killed leaves a group that whoever looks removes, or that serves the next life.
def forever():
    cgroup.enter(place, "two", Limits(64 << 20, None, None), [os.getpid()])
    os.write(told, b"x")
    time.sleep(1000)
listening, told = os.pipe()
for _ in range(2):
    killed = in_child(forever)
    os.read(listening, 1)
    assert not cgroup.remove(f"{place}/msb-two")
    os.kill(killed, 9)
    os.waitpid(killed, 0)
assert cgroup.remove(f"{place}/msb-two")
assert not os.path.exists(f"{place}/msb-two")
# Where there are processes no limits can be given on, and nothing is left of the attempt.
try:
    cgroup.enter(f"{place}/main", "three", Limits(64 << 20, None, None), [os.getpid()])
except OSError as error:
    assert error.errno == errno.EBUSY
assert not os.path.exists(f"{place}/main/msb-three")

def nobody():
    os.setuid(65534)
    assert cgroup.place(place).reason == f"{place} is not writable"

assert end_of(in_child(nobody)) == 0

# A user to whom a part is delegated as systemd does it, and who has no other rights.
mine = "/sys/fs/cgroup/mine"
os.makedirs(f"{mine}/shell")
for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "shell", "shell/cgroup.procs"):
    os.chown(f"{mine}/{name}", 65534, 65534)
os.setxattr(mine, "user.delegate", b"1")

def delegated():
    with open(f"{mine}/shell/cgroup.procs", "w") as file:
        file.write("0")
    os.setgid(65534)
    os.setuid(65534)
    assert cgroup.place(None).directory == mine, cgroup.place(None)
    vmm = in_child(lambda: time.sleep(1000))
    limits = Limits(32 << 20, 0.5, 20)
    group = cgroup.enter(mine, "four", limits, [os.getpid(), vmm])
    assert cgroup.limits_of(group) == limits
    assert open(f"/proc/{vmm}/cgroup").read().strip() == "0::/mine/msb-four"
    assert end_of(in_child(hog)) == -9
    os.kill(vmm, 9)
    os.waitpid(vmm, 0)
    cgroup.leave(group)

assert end_of(in_child(delegated)) == 0
assert sorted(entry.name for entry in os.scandir(mine) if entry.is_dir()) == ["msb-ending", "shell"]
print("all of it")
"""


@pytest.fixture(scope="module")
def python_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with this interpreter, its standard library, and the module under test."""
    root = tmp_path_factory.mktemp("python")
    root.chmod(0o755)  # it is the guest's /, where others than root have to find something
    program = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    unwanted = shutil.ignore_patterns(
        "test", "site-packages", "dist-packages", "__pycache__", "config-*", "idlelib", "ensurepip"
    )
    shutil.copytree(library, root / library.relative_to("/"), ignore=unwanted)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.split()
    for file in (program, *(Path(word) for word in linked if word.startswith("/"))):
        copy = root / file.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (root / "src").mkdir()
    assert cgroup.__file__ is not None
    shutil.copy(cgroup.__file__, root / "src")
    (root / "src" / "script.py").write_text(_SCRIPT)
    return root


@pytest.mark.slow
@pytest.mark.once
def test_what_is_written_is_what_the_kernel_enforces(own_msb: Msb, python_rootfs: Path) -> None:
    program = os.path.realpath(sys.executable)
    done = own_msb("run", "-m", "256M", python_rootfs, "--", program, "-S", "-B", "/src/script.py")
    assert (done.text, done.complaint, done.code) == ("all of it\n", "", 0)


# ---------------------------------------------------------------------------------------- on this host


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> str:
    """The directory of this host in which groups are made."""
    found = cgroup.place(env.value(env.MSB_CGROUP))
    if found.directory is None:
        pytest.skip(f"no limits of the host here: {found.reason}")
    return found.directory


@pytest.fixture
def limited(msb: Msb, place: str) -> Iterator[Msb]:
    """`msb` with groups made there, and none left behind."""
    yield msb.with_settings(MSB_CGROUP=place)
    assert [name for name in _groups(place) if name != cgroup.ENDING] == []


def _groups(place: str) -> list[str]:
    return [path.name for path in Path(place).glob(f"{cgroup.PREFIX}*")]


def _group_of(process: Process) -> str:
    lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::")).rpartition("/")[2]


@pytest.mark.alone(reason="other tests make groups in the same place")
def test_both_processes_of_a_sandbox_are_in_its_group(limited: Msb, host: Host, place: str) -> None:
    limited("create", "-m", "256M", "-c", "2", "--name", "dev", "busybox").succeeded()
    try:
        running = host.sandbox()
        name = cgroup.PREFIX + running.id
        for process in (running.supervisor, running.vmm):
            eventually(lambda p=process: _group_of(p) == name, within=60, what=f"{process} in {name}")  # type: ignore[misc]
        (found,) = json.loads(limited("inspect", "dev").succeeded().out)
        (measured,) = json.loads(limited("metrics", "--format", "json").succeeded().out)
        assert found["host_limits"] == measured["host_limits"]
        assert found["host_limits"]["cgroup"] == f"{place}/{name}"
        expected = cgroup.limits_for(256, 2, emulated=found["isolation"] == "emulated")
        for field in ("memory", "cpus", "tasks"):
            assert found["host_limits"][field] in (getattr(expected, field), None)
        limited("stop", "dev").succeeded()
        assert name not in _groups(place)
        # Killed: whoever looks removes it.
        limited("start", "dev").succeeded()
        eventually(lambda: _group_of(host.sandbox().supervisor) == name, within=60, what="the group")
        host.sandbox().supervisor.kill()
        eventually(lambda: not host.running(), within=60, what="the end of both")
        limited("ls").succeeded()
        assert name not in _groups(place)
    finally:
        limited("rm", "--force", "dev").succeeded()


@pytest.mark.slow
@pytest.mark.alone(reason="times are compared, and other tests make groups in the same place")
def test_a_hog_does_not_take_its_siblings_share(limited: Msb, host: Host, place: str) -> None:
    """ADVERSARIAL V03."""
    limited("create", "--name", "sibling", "busybox").succeeded()
    limited("create", "-m", "256M", "--name", "hog", "busybox").succeeded()
    try:
        quiet = _ninety_ninth(limited)
        (hog,) = [each for each in json.loads(limited("inspect", "hog").out) if each["name"] == "hog"]
        group = Path(place, cgroup.PREFIX + hog["id"])
        script = "for i in 1 2 3 4; do (while :; do dd if=/dev/zero of=/f$i bs=1M count=64; done) & done; "
        script += "echo up; tail /dev/zero"
        with limited.start("exec", "hog", "--", "sh", "-c", script) as hogging:
            assert hogging.line() == b"up\n"
            assert _ninety_ninth(limited) < 2 * quiet
            limit = (group / "memory.max").read_text().strip()
            assert int((group / "memory.current").read_text()) <= int(limit)
    finally:
        limited("rm", "--force", "sibling", "hog").succeeded()


def _ninety_ninth(msb: Msb) -> float:
    """Seconds of the slowest but one of a hundred commands in the sibling."""
    taken = []
    for _ in range(100):
        begun = time.monotonic()
        msb("exec", "sibling", "--", "true").succeeded()
        taken.append(time.monotonic() - begun)
    return sorted(taken)[98]


def test_where_no_group_can_be_made_the_sandbox_runs_and_says_why(msb: Msb, tmp_path: Path) -> None:
    asked = msb.with_settings(MSB_CGROUP=str(tmp_path))
    asked("create", "--name", "dev", "busybox").succeeded()
    try:
        assert asked("exec", "dev", "--", "echo", "works").succeeded().out == b"works\n"
        (found,) = json.loads(asked("inspect", "dev").succeeded().out)
        assert found["host_limits"] is None
        why = asked("logs", "dev", "--source", "supervisor").succeeded().text
        assert f"MSB_CGROUP={tmp_path} is no directory of cgroup v2" in why
        assert str(tmp_path) in asked("doctor").text
    finally:
        asked("rm", "--force", "dev").succeeded()
