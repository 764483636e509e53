"""Verbs from many processes at once, or cut off anywhere: one winner, no leftovers, `ls` is true."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.host import Host
from tests.support.msb import Msb, Running
from tests.support.truth import assert_clean, assert_listing_is_true, settled
from tests.support.waiting import eventually

pytestmark = pytest.mark.vm

NAMES = ("one", "two", "three")
PROCESSES = 20
ROUNDS = int(os.environ.get("MSB_TEST_STORM_ROUNDS", "2"))
KILLS = int(os.environ.get("MSB_TEST_KILLS", "3"))
SEED = int(os.environ.get("MSB_TEST_SEED", "0")) or random.randrange(1 << 32)

VERBS: tuple[tuple[str, ...], ...] = (
    ("start",),
    ("stop", "-t", "2s"),
    ("stop", "--force"),
    ("restart", "-t", "2s"),
    ("rm",),
    ("rm", "--force"),
    ("create", "-q", "-m", "128M", "busybox", "--replace", "--name"),
    ("create", "-q", "-m", "128M", "busybox", "--name"),
)
# What a loser may be told: typed, one line, and true at some moment of the storm.
TOLD = (
    "there is no sandbox named",
    "is starting",
    "is running",
    "is stopping",
    "exists",
    "stopped while it was starting",
    "replaced by another one while it was starting",
    "is not running",
)


@pytest.fixture
def names(msb: Msb) -> Iterator[tuple[str, ...]]:
    """Three names; what has them is removed afterwards."""
    yield NAMES
    msb("rm", "--force", *NAMES).succeeded()


@pytest.mark.slow
@pytest.mark.alone(reason="a load for whoever has a deadline")
def test_twenty_processes_on_three_names(msb: Msb, host: Host, names: tuple[str, ...]) -> None:
    # L01, L02, L06
    chance = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}\n")  # shown when it fails
    for _ in range(ROUNDS):
        commands = []
        for _ in range(PROCESSES):
            arguments = (*chance.choice(VERBS), chance.choice(names))
            commands.append((arguments, msb.start(*arguments)))
        for arguments, command in commands:
            with command:
                done = command.finish(b"", timeout=240)
                if done.code:
                    assert done.code in (1, 125), (arguments, done)
                    assert any(told in done.complaint for told in TOLD), (arguments, done)
                    assert "Traceback" not in done.complaint
        eventually(lambda: settled(msb), within=60, what="supervisors without creators have gone")
        assert_listing_is_true(msb, host)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["command line", "supervisor"])
@pytest.mark.parametrize(
    "verb", [("create", "busybox", "--name"), ("start",), ("stop",), ("rm",), ("rm", "--force")], ids=" ".join
)
def test_kill_at_any_moment_of_a_verb(msb: Msb, host: Host, verb: tuple[str, ...], victim: str) -> None:
    # L03: the moment is drawn from the time that the verb takes when nobody interferes
    chance = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}\n")  # shown when it fails
    taken = _time_of(msb, verb)
    for _ in range(KILLS):
        _prepare(msb, verb)
        upper_of_stopped = verb in (("start",), ("rm",))
        before = host.rows()
        command = msb.start(*verb, "one")
        with command:
            pause = chance.uniform(0, taken)
            select.select([command.stdout], [], [], pause)
            _kill(victim, command, host)
            if victim == "supervisor":
                done = command.finish(b"", timeout=60)
                assert done.code in (0, 1, 125), done
                assert "Traceback" not in done.complaint, done
        eventually(lambda: settled(msb), within=60, what="supervisors without creators have gone")
        assert_listing_is_true(msb, host)
        # Whatever the moment was, the sandbox is whole or gone.
        if host.rows():
            assert host.rows() == ["one"]
            if not host.running():
                msb("start", "one").succeeded()
            marked = msb("exec", "one", "--", "cat", "/root/mark")
            if upper_of_stopped or (before and verb == ("stop",)):
                assert marked.succeeded().text == "kept\n"
            msb("stop", "one").succeeded()
            assert_clean(host)
        msb("rm", "--force", "one").succeeded()
        host.wait_empty()
        assert host.rows() == []


def _prepare(msb: Msb, verb: tuple[str, ...]) -> None:
    """The sandbox `one` as the verb needs it, with a file in it that was synced."""
    if verb[0] == "create":
        return
    script = "echo kept > /root/mark; sync"
    if verb in (("start",), ("rm",)):
        msb.run("sh", "-c", script, options=["--name", "one"]).succeeded()
    else:
        msb("create", "busybox", "--name", "one").succeeded()
        msb("exec", "one", "--", "sh", "-c", script).succeeded()


def _time_of(msb: Msb, verb: tuple[str, ...]) -> float:
    _prepare(msb, verb)
    begun = time.monotonic()
    msb(*verb, "one").succeeded()
    taken = time.monotonic() - begun
    msb("rm", "--force", "one").succeeded()
    return taken


def _kill(victim: str, command: Running, host: Host) -> None:
    if victim == "command line":
        command.process.kill()
        command.process.wait()
        return
    for process in host.processes():
        if "microsandbox.supervisor" in process.argv:
            process.kill()


def test_a_removal_that_was_cut_off_is_finished_by_the_next_command(msb: Msb, host: Host) -> None:
    msb.run("true", options=["--name", "one"]).succeeded()
    # Stopped where the record has gone and the directory has not: what a removal leaves there is swept.
    script = (
        "import os, signal\n"
        "from microsandbox import _create, _directory\n"
        "from microsandbox_core import env\n"
        "_directory.SandboxDirectory.remove = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        "_create.forget(env.home(), _create.find(env.home(), 'one'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=msb.environ)
    assert done.returncode == -signal.SIGKILL
    assert host.rows() == []
    assert "there is no sandbox" in msb("start", "one").failed(1)
    assert msb("ls", "-q").succeeded().out == b""
    assert host.directories() == []
