"""Pausing and forking as the supervisor does it: nothing is left standing, whatever fails."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from microsandbox._directory import SandboxDirectory
from microsandbox.supervisor import _standstill
from microsandbox.supervisor._standstill import HOLD_DEADLINE, Standstill
from microsandbox_core.channel import Ended, Opened, TooManyStreams
from microsandbox_core.errors import MachineFailed, Unsupported
from microsandbox_core.relay import Relay
from microsandbox_core.relay_server import RelayServer
from microsandbox_core.vmm import Vm
from microsandbox_core.vmm.saved import Capture

OTHER = "0123456789abcdef"


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class World:
    """The supervisor's loop, relay and machine, all in one and all made up."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[str] = []
        self.notes: list[bool] = []
        self.methods: dict[str, Any] = {}
        self.gate: Any = None
        self.active_at = 0.0
        self.stopping = False
        self.failing: dict[str, Exception] = {}
        self.holds: list[tuple[bytes, Callable[[Any], None]]] = []
        self.timers: list[Timer] = []
        self.sent: list[bytes] = []
        self._waiting: dict[int, Callable[[], None]] = {}
        self.directory = SandboxDirectory(home, "f" * 16)
        self.directory.path.mkdir(parents=True)
        self.directory.upper.write_bytes(b"disk")
        self.other = SandboxDirectory(home, OTHER)
        self.other.fork.mkdir(parents=True)
        # What runs on a thread is done when the loop would hear of it.
        monkeypatch.setattr("_thread.start_new_thread", lambda work, _: work())
        self.ready = False
        self.standstill = Standstill(
            cast(RelayServer, self), cast(Relay, self), cast(Vm, self), self.directory,
            name="dev", basis="basis", is_stopping=lambda: self.stopping, note=self.notes.append,
        )  # fmt: skip

    # The loop.
    def call_later(self, _delay: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        self._waiting[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        del self._waiting[descriptor]

    def send_past(self, data: bytes, _timeout: float) -> None:
        self._do("send")
        self.sent.append(data)

    def turn(self) -> None:
        for callback in list(self._waiting.values()):
            callback()

    # The relay.
    def open(self, method: str, params: Any, on_event: Callable[[Any], None]) -> int:
        assert method == "hold"
        self._do("hold")
        self.holds.append((params["token"], on_event))
        return 7

    # The machine.
    def pause(self) -> None:
        self._do("pause")

    def resume(self) -> None:
        self._do("resume")

    def written(self) -> int:
        self._do("written")
        return 4096

    def save(self, directory: Path, _capture: Capture) -> None:
        self._do("save")
        assert directory == self.other.fork

    def copy_disk(self, _disk: int, _size: int, target: Path) -> Any:
        self._do("copy")
        target.write_bytes(b"copy")
        return self

    def is_ready(self) -> bool:
        return self.ready

    def finish(self) -> None:
        self._do("finish")

    def give_up(self) -> None:
        self._do("give up")

    def _do(self, what: str) -> None:
        if what in self.failing:
            raise self.failing[what]
        self.did.append(what)

    # The test.
    def ask(self, method: str, **params: Any) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        self.standstill.serve(method, params, answers.append)
        return answers

    def held(self) -> None:
        self.holds[-1][1](Opened(7, {}))

    def kind(self, answers: list[dict[str, Any]]) -> str:
        (answer,) = answers
        return str(answer["error"]["kind"])

    def paused(self) -> None:
        answers = self.ask("pause")
        self.held()
        assert answers == [{}]
        self.did.clear()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_pause_begins_when_the_agent_holds(world: World) -> None:
    answers = world.ask("pause")
    assert (answers, world.did) == ([], ["hold"])
    world.held()
    assert (answers, world.did, world.notes) == ([{}], ["hold", "pause"], [True])
    assert world.gate("exec")["kind"] == "paused"
    assert world.ask("pause") == [{}]
    assert world.did == ["hold", "pause"]
    assert world.ask("resume") == [{}]
    assert (world.did[2:], world.notes) == (["resume", "send"], [True, False])
    token, role, _ = struct.unpack(">16sBQ", world.sent[0])
    assert (token, role) == (world.holds[0][0], 0)
    assert world.gate("exec") is None


def test_what_has_to_stop_goes_on(world: World) -> None:
    world.paused()
    assert world.gate("shutdown") is None
    assert (world.did, world.notes) == (["resume", "send"], [True, False])


def test_requests_wait_for_those_before_them(world: World) -> None:
    pause, resume = world.ask("pause"), world.ask("resume")
    assert (pause, resume) == ([], [])
    world.held()
    assert (pause, resume) == ([{}], [{}])
    assert world.did == ["hold", "pause", "resume", "send"]


def test_an_agent_that_does_not_hold_can_be_paused_and_not_forked(world: World) -> None:
    fork = world.ask("fork", into=OTHER)
    world.turn()
    callback = world.timers[-1].callback
    assert callback is not None
    callback()
    assert world.kind(fork) == "machine_failed"
    assert f"within {HOLD_DEADLINE:.0f} s" in fork[0]["error"]["message"]
    pause = world.ask("pause")
    callback = world.timers[-1].callback
    assert callback is not None
    callback()
    assert pause == [{}]
    # Nothing is released before the agent says that it holds: it would take it for a part of the connection.
    assert world.sent == []
    # Its words come late: it is let go of what was given up, and paused it stays.
    world.did.clear()
    world.holds[0][1](Opened(7, {}))
    assert (world.did, world.sent[0][:16]) == (["send"], world.holds[0][0])
    world.held()
    assert world.did == ["send"]
    assert world.ask("resume") == [{}]
    assert (world.did, world.sent[1][:16]) == (["send", "resume", "send"], world.holds[1][0])


def test_an_agent_that_holds_after_its_machine_went_on_is_let_go(world: World) -> None:
    pause = world.ask("pause")
    _look_again(world)
    assert (pause, world.ask("resume")) == ([{}], [{}])
    assert world.did == ["hold", "pause", "resume"]
    world.held()
    assert (world.did[3:], world.sent[0][:16]) == (["send"], world.holds[0][0])


@pytest.mark.parametrize("what", ["pause", "save"])
def test_a_fork_that_fails_leaves_the_source_running(world: World, what: str) -> None:
    world.failing[what] = Unsupported("not here")
    answers = world.ask("fork", into=OTHER)
    world.turn()
    world.held()
    assert world.kind(answers) == "unsupported"
    assert world.did[-2:] == ["resume", "send"]
    assert not world.standstill.paused
    # And the next is not kept waiting.
    assert world.ask("resume") == [{}]


def test_a_fork_takes_what_there_is_and_tells_what_it_took(world: World) -> None:
    answers = world.ask("fork", into=OTHER)
    assert (answers, world.did) == ([], ["written"])
    world.turn()
    world.held()
    assert world.did == ["written", "hold", "pause", "save", "resume", "send"]
    assert answers == []
    world.turn()
    (facts,) = answers
    assert (facts["token"], facts["basis"], facts["upper"]) == (world.holds[0][0], "basis", 4)
    assert facts["pause_us"] > 0
    assert world.other.upper.read_bytes() == b"disk"


def test_a_fork_of_what_is_paused_leaves_it_paused(world: World) -> None:
    world.paused()
    answers = world.ask("fork", into=OTHER)
    world.turn()
    world.turn()
    assert world.did == ["written", "save"]
    assert (answers[0]["token"], answers[0]["pause_us"]) == (world.holds[0][0], 0)
    assert world.standstill.paused
    world.failing["save"] = MachineFailed("no")
    failed = world.ask("fork", into=OTHER)
    world.turn()
    assert world.kind(failed) == "machine_failed"
    assert world.standstill.paused
    assert world.sent == []


def _look_again(world: World) -> None:
    callback = world.timers[-1].callback
    assert callback is not None
    callback()


def test_much_on_a_disk_is_copied_before_the_pause(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_standstill, "MIRRORED", 0)
    monkeypatch.setattr(_standstill, "shares_blocks", lambda *_: False)
    answers = world.ask("fork", into=OTHER)
    world.turn()
    _look_again(world)
    assert world.did == ["copy", "written"]
    world.ready = True
    _look_again(world)
    world.held()
    world.turn()
    assert world.did[2:] == ["hold", "pause", "save", "finish", "resume", "send", "give up"]
    assert (answers[0]["upper"], world.other.upper.read_bytes()) == (0, b"copy")


def test_a_disk_that_cannot_be_copied_in_use(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_standstill, "MIRRORED", 0)
    monkeypatch.setattr(_standstill, "MIRROR_DEADLINE", 0.0)
    monkeypatch.setattr(_standstill, "shares_blocks", lambda *_: False)
    answers = world.ask("fork", into=OTHER)
    world.turn()
    assert world.kind(answers) == "machine_failed"
    assert world.did == ["copy", "written", "give up"]
    assert world.ask("resume") == [{}]


def test_one_that_is_being_stopped_is_left_to_it(world: World) -> None:
    answers = world.ask("pause")
    world.stopping = True
    world.held()
    assert world.kind(answers) == "stopping"
    assert world.did == ["hold", "send"]


def test_what_the_agent_or_the_relay_refuses(world: World) -> None:
    answers = world.ask("pause")
    world.holds[-1][1](Ended(7, {"error": {"kind": "shutting_down", "message": "no"}}))
    assert world.kind(answers) == "shutting_down"
    world.failing["hold"] = TooManyStreams("too many")
    assert world.kind(world.ask("pause")) == "busy"
    assert (world.standstill.paused, world.sent) == (False, [])


@pytest.mark.parametrize("into", [None, 3, "..", "0123456789ABCDEF", OTHER + "0"])
def test_a_fork_goes_into_the_directory_of_a_sandbox(world: World, into: Any) -> None:
    assert world.kind(world.ask("fork", into=into)) == "invalid_request"


def test_a_directory_that_has_gone(world: World) -> None:
    answers = world.ask("fork", into="0" * 16)
    world.turn()
    world.failing["save"] = FileNotFoundError(2, "No such file or directory", "/x/state")
    world.held()
    assert world.kind(answers) == "storage"
    assert answers[0]["error"]["message"] == "state: No such file or directory"
    assert world.did[-2:] == ["resume", "send"]


@pytest.mark.parametrize("what", ["", "written", "pause", "save", "hold"])
def test_a_fork_has_memory_of_its_own_for_as_long_as_it_takes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A guest that uses all that it may would else be killed by the copy."""
    group = tmp_path / "msb-group"
    group.mkdir()
    limit = group / "memory.max"
    limit.write_text("1000000000")
    (world.directory.path / "cgroup").symlink_to(group)
    seen: list[int] = []

    class Watched(Capture):
        def __init__(self, room: int) -> None:
            seen.append(int(limit.read_text()) - 1000000000 - room)
            super().__init__(room)

    monkeypatch.setattr(_standstill, "Capture", Watched)
    if what:
        world.failing[what] = TooManyStreams("full") if what == "hold" else MachineFailed("it failed")
    answer = world.ask("fork", into=OTHER)
    world.turn()
    if world.holds:
        world.held()
        world.turn()
    assert ("error" in answer[0]) == bool(what)
    assert seen == ([] if what == "written" else [0])
    assert limit.read_text() == "1000000000"
