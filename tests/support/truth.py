"""What is true after verbs that were disturbed: `ls` says what the host shows, and a disk is whole."""

from __future__ import annotations

import json
import os
import subprocess

from microsandbox.info import list_sandboxes

from tests.support.host import Host
from tests.support.msb import Msb


def settled(msb: Msb) -> bool:
    """Every command has ended, and so has what ends with it: the processes that are left are those of
    sandboxes that are to go on running.
    """
    host = msb.host
    supervisors = [p for p in host.processes() if "microsandbox.supervisor" in p.argv]
    running = {info.supervisor_pid: info for info in list_sandboxes(host.home) if info.status == "running"}
    if not all(process.pid in running for process in supervisors):
        return False
    # One that runs may have a creator who has just been killed. When it answers it has seen to that: both
    # the end of its creator and the question wake it, and with the first it is over.
    if not all(msb("ping", running[process.pid].name).code == 0 for process in supervisors):
        return False
    # A VMM is killed with its supervisor, and is there for a moment longer.
    parts = {process.pid for sandbox in host.running() for process in (sandbox.supervisor, sandbox.vmm)}
    return {process.pid for process in host.processes()} == parts


def assert_listing_is_true(msb: Msb, host: Host) -> None:
    """What `ls` says is what the host shows: processes, directories, sockets, locks."""
    listed = {entry["id"]: entry for entry in json.loads(msb("ls", "--format", "json").succeeded().out)}
    running = {sandbox.id: sandbox for sandbox in host.running()}
    assert {i for i, entry in listed.items() if entry["status"] == "running"} == set(running)
    assert {entry["status"] for entry in listed.values()} <= {"created", "running", "stopped", "crashed"}
    for identifier, sandbox in running.items():
        shown = listed[identifier]
        assert (shown["supervisor_pid"], shown["vmm_pid"]) == (sandbox.supervisor.pid, sandbox.vmm.pid)
        assert msb("exec", str(shown["name"]), "--", "echo", "there").succeeded().text == "there\n"
    assert host.directories() == sorted(listed)
    assert sorted(str(entry["name"]) for entry in listed.values()) == host.rows()
    expected = {process.pid for sandbox in running.values() for process in (sandbox.supervisor, sandbox.vmm)}
    assert {process.pid for process in host.processes()} == expected
    directories = {str(sandbox.directory) for sandbox in running.values()}
    assert {os.path.dirname(f"/{path}") for path in host.sockets()} == directories  # noqa: PTH120
    assert {os.path.dirname(path) for path in host.locks() if path.endswith("/lock")} == directories  # noqa: PTH120


def assert_clean(host: Host) -> None:
    """The writable disk of the one sandbox there is has a file system without errors."""
    (identifier,) = host.directories()
    upper = host.home / "sandboxes" / identifier / "upper.ext4"
    found = subprocess.run(["/usr/sbin/e2fsck", "-fn", upper], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
