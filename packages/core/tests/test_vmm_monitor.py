"""The monitor of a machine that lives on, against a QEMU that says what it likes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from microsandbox_core.errors import MachineFailed
from microsandbox_core.vmm._monitor import Monitor

Answer = Callable[[dict[str, Any]], list[Any]]


class Qemu:
    """Answers every command by what `answer` makes of it; bytes are sent as they are."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.monitor, self._socket = socket.socketpair()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def say(self, *messages: Any) -> None:
        for message in messages:
            self._socket.sendall(
                message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            )

    def _serve(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError), self._socket.makefile("rb") as lines:
            for line in lines:
                self.asked.append(json.loads(line))
                self.say(*self._answer(self.asked[-1]))

    def end(self) -> None:
        self.monitor.close()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def qemu() -> Iterator[Callable[[Answer], Qemu]]:
    made: list[Qemu] = []

    def make(answer: Answer) -> Qemu:
        made.append(Qemu(answer))
        return made[-1]

    yield make
    for each in made:
        each.end()


def _plain(command: dict[str, Any]) -> list[Any]:
    return [{"return": {}, "id": command["id"]}]


def _talk(qemu: Qemu, *, greeted: bool = True) -> Monitor:
    return Monitor(qemu.monitor, greeted=greeted).within(120)


def test_answers_are_told_from_everything_else(qemu: Callable[[Answer], Qemu]) -> None:
    peer = qemu(
        lambda c: [{"event": "STOP"}, {"return": 1}, {"return": 2, "id": 99}, {"return": 3, "id": c["id"]}]
    )
    peer.say({"QMP": {}}, {"return": {}})
    talk = _talk(peer)
    assert talk.ask("stop", {}) == 3
    assert talk.ask("cont", {}) == 3
    assert [command["execute"] for command in peer.asked] == ["stop", "cont"]


def test_a_machine_that_was_booted_is_greeted_first(qemu: Callable[[Answer], Qemu]) -> None:
    peer = qemu(_plain)
    _talk(peer, greeted=False).ask("stop", {})
    assert [command["execute"] for command in peer.asked] == ["qmp_capabilities", "stop"]


def test_what_nobody_asked_for_is_forgotten_but_for_what_has_begun(qemu: Callable[[Answer], Qemu]) -> None:
    peer = qemu(_plain)
    talk = _talk(peer)
    peer.say({"event": "RTC_CHANGE"}, b'{"event": "RE')
    assert talk.discard()
    peer.say(b'SUME"}\n')
    assert talk.ask("stop", {}) == {}
    assert talk.discard()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([{"error": {"desc": "no such thing"}, "id": 1}], "QEMU refused stop: no such thing"),
        ([b"[" * 200_000 + b"\n"], "no JSON"),
        ([b"nonsense\n"], "no JSON"),
        ([b"x" * (2 << 20)], "too much"),
    ],
)
def test_answers_that_are_none(qemu: Callable[[Answer], Qemu], said: list[Any], told: str) -> None:
    with pytest.raises(MachineFailed, match=told):
        _talk(qemu(lambda _: said)).ask("stop", {})


def test_silence_and_the_end(qemu: Callable[[Answer], Qemu]) -> None:
    silent = qemu(lambda _: [])
    with pytest.raises(MachineFailed, match="did not answer stop in time"):
        Monitor(silent.monitor, greeted=True).within(0.05).ask("stop", {})
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert not Monitor(ours, greeted=True).discard()
        with pytest.raises(MachineFailed, match=r"gone|ended"):
            Monitor(ours, greeted=True).within(1).ask("stop", {})


def test_where_the_memory_is(qemu: Callable[[Answer], Qemu]) -> None:
    said = [
        "Host virtual address for 0x0 (pc.ram) is 0x7f0123400000\r\n",
        "No memory is mapped at address 0x0\r\n",
    ]
    peer = qemu(lambda command: [{"return": said.pop(0), "id": command["id"]}])
    talk = _talk(peer)
    assert talk.host_address() == 0x7F01_2340_0000
    # An address of the guest's is none of the host's.
    with pytest.raises(MachineFailed, match="does not say where the memory is"):
        talk.host_address()
