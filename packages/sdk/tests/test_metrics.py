"""Metrics: what is read on the host, what is believed of a guest, and the text for scraping."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox import _life, metrics
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record
from microsandbox._usage import ProcessUsage, seconds_since_start, usage_of
from microsandbox.errors import NotRunning
from microsandbox.host_limits import HostLimits
from microsandbox.metrics import GuestMetrics, Meter, NetworkMetrics, SandboxMetrics, guest_metrics
from microsandbox.network_metrics import network_metrics
from microsandbox.openmetrics import render
from microsandbox_core.channel import GuestConnection, HostHelloReceived, OpenReceived, Value

MEMORY, UPPER = 512 << 20, 8 << 30

NETWORK = NetworkMetrics(
    sent=1000, received=9000, packets_sent=10, packets_received=20, payload_sent=100, payload_received=8000,
    connections=2, connections_opened=3, flows=1, flows_opened=4, peers=5, questions=6, allowed=7, denied=8,
    failed=9, dropped=11,
)  # fmt: skip
COUNTERS = {
    "bytes_from_guest": 1000, "bytes_to_guest": 9000, "frames_from_guest": 10, "frames_to_guest": 20,
    "bytes_sent": 100, "bytes_received": 8000, "tcp_now": 2, "tcp_opened": 3, "datagrams_now": 1,
    "datagrams_opened": 4, "peers_now": 5, "questions": 6, "allowed": 7, "denied": 8, "failed": 9,
    "dropped_spoofed": 4, "dropped_full": 7,
}  # fmt: skip
USAGE = ProcessUsage(7, 1.25, 1.0, 0.25, 30 << 20, 20 << 20, 4096, 8192)
MEASURED = SandboxMetrics(
    id="0123456789abcdef", name="dev", image="busybox", isolation="kvm",
    taken_at=datetime(2026, 5, 4, tzinfo=UTC), uptime=61.5, cpus=2, memory=MEMORY, cpu_percent=None,
    vmm=USAGE, supervisor=USAGE._replace(pid=6, pss=None), upper_allocated=1 << 20, upper_size=UPPER,
    network=None, host_limits=HostLimits("/sys/fs/cgroup/msb-1", 1 << 30, 2.5, None),
    guest=GuestMetrics(memory_total=500 << 20, memory_available=400 << 20, tasks=3), guest_error=None,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- host


def test_a_process_is_measured_as_it_measures_itself() -> None:
    before = time.process_time()
    found = usage_of(os.getpid(), parent=os.getppid())
    after = time.process_time()
    assert found is not None
    assert before <= found.cpu_seconds <= after
    assert abs(found.user_seconds + found.system_seconds - found.cpu_seconds) < 0.05
    assert found.pss is not None
    assert 1 << 20 < found.pss <= found.rss * 2
    assert found.written is not None


def test_a_process_that_is_nobodys_child_or_has_ended_has_no_usage() -> None:
    assert usage_of(os.getpid(), parent=1 << 22) is None
    assert usage_of(1 << 22) is None
    assert seconds_since_start(1 << 22) is None


def test_uptime_is_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock goes back a day, and the host has slept for an hour."""
    before = seconds_since_start(os.getpid())
    now = time.time()
    boottime = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: boottime + 3600 if clock == 7 else 0.0)
    after = seconds_since_start(os.getpid())
    assert before is not None
    assert after is not None
    assert 3600 <= after - before < 3610


# ------------------------------------------------------------------------------------------------ guest

_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.integers(-(1 << 63), (1 << 64) - 1), st.booleans(), st.text(), st.binary(), st.none(),
    st.lists(st.integers(0, 9)), st.dictionaries(st.text(), st.integers(0, 9)),
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*GuestMetrics._fields, "more"]), _VALUES))
def test_what_a_guest_says_is_possible_or_not_believed(said: dict[str, Any]) -> None:
    found = guest_metrics(said, MEMORY, UPPER)
    for value in found:
        assert value is None or (type(value) is int and value >= 0)
    assert (found.memory_total or 0) <= MEMORY
    assert (found.memory_available or 0) <= (found.memory_total or 0)
    assert (found.memory_used or 0) >= 0
    assert (found.upper_total or 0) <= UPPER
    assert (found.upper_used or 0) <= (found.upper_total or 0)
    assert (found.tasks or 0) <= 1 << 22


def test_what_a_guest_says_in_good_order_is_taken_as_it_is() -> None:
    said = {
        "memory_total": 500 << 20, "memory_available": 400 << 20, "upper_total": 7 << 30, "upper_used": 5,
        "disk_read": 6, "disk_written": 7, "execs": 1, "tasks": 3,
    }  # fmt: skip
    found = guest_metrics(said, MEMORY, UPPER)
    assert found._asdict() == said
    assert found.memory_used == 100 << 20


class Guest:
    """A supervisor's socket with a guest behind it that answers as a test wants, or not at all."""

    def __init__(
        self, path: Path, answer: dict[str, Value] | None, network: dict[str, Value] | None = None
    ) -> None:
        self.answer = answer
        self.network = network or {}
        self.asked: list[str] = []
        self._path = path
        self._served: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Guest:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._served)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.append(task)
        # A client that has what it wants leaves, whether it has been answered or not.
        with contextlib.suppress(ConnectionError):
            await self._answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = GuestConnection()
        while data := await reader.read(1 << 16):
            for event in guest.receive(data):
                if isinstance(event, HostHelloReceived):
                    guest.hello(agent_version="1", configured=True)
                if isinstance(event, OpenReceived):
                    self.asked.append(event.method)
                    if event.method == "network.metrics":
                        guest.end(event.stream, self.network)
                    elif self.answer is not None:
                        guest.end(event.stream, self.answer)
            pieces = guest.output()
            guest.sent(sum(map(len, pieces)))
            writer.writelines(pieces)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: that of a Unix socket has 108 bytes."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def record(home: Path) -> Record:
    """A sandbox of this home whose supervisor is this process and whose VMM is one that sleeps."""
    return Record(
        "0123456789abcdef", "dev", False, 0, "busybox", "sha256:0", SandboxConfig(cpus=2).pack(), ()
    )


@pytest.fixture
def alive(home: Path, record: Record) -> Any:
    """The sandbox's directory with its lock held."""
    directory = SandboxDirectory(home, record.id)
    lock = directory.create()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    me = os.getpid()
    life = _life.begun()._replace(
        status="running", pid=me, ticks=_life.started_at(me), vmm_pid=child, isolation="emulated"
    )
    _life.write(directory, life)
    yield directory
    ours.close()
    os.waitpid(child, 0)
    os.close(lock)


@pytest.mark.asyncio
async def test_the_hosts_figures_and_the_guests_are_kept_apart(
    home: Path, record: Record, alive: SandboxDirectory
) -> None:
    async with Guest(alive.socket, {"memory_total": 1 << 62, "execs": 4, "vmm": 1}) as guest:
        found = await Meter(home).measure(record)
    assert guest.asked == ["network.metrics", "metrics"]
    assert (found.supervisor.pid, found.cpus, found.memory) == (os.getpid(), 2, MEMORY)
    assert found.guest == GuestMetrics(execs=4)
    assert (found.guest_error, found.network, found.cpu_percent) == (None, None, None)


@pytest.mark.asyncio
async def test_a_guest_that_does_not_answer_takes_its_own_figures_along_only(
    home: Path, record: Record, alive: SandboxDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "GUEST_TIME", 0.05)
    meter = Meter(home)
    async with Guest(alive.socket, None):
        found = await meter.measure(record)
        assert (found.guest, found.guest_error) == (None, "the guest did not answer within 0.05 s")
    async with Guest(alive.socket, {"error": {"kind": "unknown_method", "message": "x" * 5000}}):
        found = await meter.measure(record)
    assert found.guest is None
    assert found.guest_error is not None
    assert 0 < len(found.guest_error) <= 300
    # Measured before, so there is something to compare with.
    assert found.cpu_percent is not None
    assert 0 <= found.cpu_percent < 1000


@pytest.mark.asyncio
async def test_what_has_passed_the_card_is_the_supervisors_word(
    home: Path, record: Record, alive: SandboxDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "GUEST_TIME", 60)
    said: dict[str, Value] = {"execs": 1, **COUNTERS}
    async with Guest(alive.socket, said, {**COUNTERS}):
        found = await Meter(home).measure(record)
    assert found.network == NETWORK
    async with Guest(alive.socket, said):
        assert (await Meter(home).measure(record)).network is None
    # A supervisor of before, and a guest that is silent.
    async with Guest(alive.socket, said, {"error": {"kind": "unknown_method", "message": ""}}):
        found = await Meter(home).measure(record)
        assert (found.network, found.guest) == (None, GuestMetrics(execs=1))
    # What the supervisor says has to come within the time that is waited for the guest.
    monkeypatch.setattr(metrics, "GUEST_TIME", 5)
    async with Guest(alive.socket, None, {**COUNTERS}):
        found = await Meter(home).measure(record)
        assert (found.network, found.guest) == (NETWORK, None)


def test_a_stack_that_counts_other_things_has_no_metrics() -> None:
    assert network_metrics(COUNTERS) == NETWORK
    assert network_metrics({"bytes_from_guest": 1}) is None
    assert network_metrics({**COUNTERS, "more": 1}) == NETWORK


@pytest.mark.asyncio
async def test_what_does_not_run_has_no_metrics(home: Path, record: Record) -> None:
    with pytest.raises(NotRunning, match="'dev' has no metrics: it is stopped"):
        await Meter(home).measure(record)


@pytest.mark.asyncio
async def test_numbers_of_processes_that_are_used_again_are_noticed(
    home: Path, record: Record, alive: SandboxDirectory
) -> None:
    life = _life.read(alive)
    assert life is not None
    _life.write(alive, life._replace(vmm_pid=os.getppid()))
    with pytest.raises(NotRunning):
        await Meter(home).measure(record)
    _life.write(alive, life._replace(ticks=life.ticks - 1))
    with pytest.raises(NotRunning):
        await Meter(home).measure(record)


# -------------------------------------------------------------------------------------------- OpenMetrics

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?\Z")


def parse(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """A strict reader of OpenMetrics 1.0, as far as it has counters, gauges and infos: samples by name and
    labels. Fails on everything that the specification does not allow."""
    assert text.endswith("# EOF\n")
    lines = text.split("\n")
    assert lines.pop() == ""
    assert lines.pop() == "# EOF"
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    families: dict[str, str] = {}
    seen: set[str] = set()
    family = kind = ""
    for line in lines:
        assert line, "an empty line"
        if line.startswith("#"):
            marker, what, name, value = line.split(" ", 3)
            assert marker == "#"
            assert _NAME.match(name), name
            if name != family:
                assert name not in families, f"{name} is interleaved"
                family, kind, seen = name, "", set()
                families[name] = ""
            assert what in {"TYPE", "UNIT", "HELP"}
            assert what not in seen, f"{what} of {name} twice"
            assert not any(sample.startswith(name) and found[sample] for sample in found), "after samples"
            seen.add(what)
            if what == "TYPE":
                assert value in {"counter", "gauge", "info"}
                families[name] = kind = value
            if what == "UNIT":
                assert name.endswith(f"_{value}")
                assert kind != "info"
            continue
        name, _, rest = line.partition("{")
        inside, _, number = rest.rpartition("} ")
        assert name == family + {"counter": "_total", "info": "_info", "gauge": ""}[kind], line
        labels = []
        while inside:
            label = _LABEL.match(inside)
            assert label is not None, line
            value = re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), label[2])
            labels.append((label[1], value))
            inside = inside[label.end() :]
            assert inside == "" or inside.startswith(",")
            inside = inside[1:]
        assert len({key for key, _ in labels}) == len(labels)
        assert _NUMBER.match(number), line
        samples = found.setdefault(name, {})
        assert tuple(sorted(labels)) not in samples, f"the same sample twice: {line}"
        samples[tuple(sorted(labels))] = float(number)
        if kind == "info":
            assert float(number) == 1
        if kind == "counter":
            assert float(number) >= 0
    text.encode()
    return found


def test_the_text_is_openmetrics() -> None:
    other = MEASURED._replace(
        id="f" * 16, name="job", network=NETWORK, guest=None, host_limits=None, upper_allocated=None
    )
    found = parse(render([MEASURED, other]))
    dev, job = (("id", "0123456789abcdef"), ("sandbox", "dev")), (("id", "f" * 16), ("sandbox", "job"))
    assert found["microsandbox_memory_bytes"] == {dev: MEMORY, job: MEMORY}
    assert found["microsandbox_guest_answered"] == {dev: 1, job: 0}
    assert found["microsandbox_guest_tasks"] == {dev: 3}
    assert found["microsandbox_limit_cpus"] == {dev: 2.5}
    assert found["microsandbox_upper_allocated_bytes"] == {dev: 1 << 20}
    by_mode = {
        (dict(labels)["process"], dict(labels)["mode"]): value
        for labels, value in found["microsandbox_cpu_seconds_total"].items()
        if dict(labels)["sandbox"] == "dev"
    }
    assert by_mode == {
        ("vmm", "user"): 1, ("vmm", "system"): 0.25,
        ("supervisor", "user"): 1, ("supervisor", "system"): 0.25,
    }  # fmt: skip
    # What is not known has no sample, and what is not there is not zero.
    assert len(found["microsandbox_proportional_memory_bytes"]) == 2
    networks = {name for name in found if name.startswith("microsandbox_network_")}
    assert {dict(labels)["sandbox"] for name in networks for labels in found[name]} == {"job"}
    assert sorted(value for name in networks for value in found[name].values()) == sorted(NETWORK)
    assert found["microsandbox_network_bytes_total"] == {
        (("direction", "received"), *job): 9000, (("direction", "sent"), *job): 1000,
    }  # fmt: skip
    assert found["microsandbox_network_decisions_total"][(*job, ("verdict", "deny"))] == 8


def test_a_sandbox_that_was_asked_for_twice_is_there_once() -> None:
    assert render([MEASURED, MEASURED]) == render([MEASURED])


def test_without_sandboxes_it_is_openmetrics_too() -> None:
    assert parse(render([])) == {}


@settings(deadline=None)
@given(st.text())
def test_every_image_can_be_a_label(image: str) -> None:
    found = parse(render([MEASURED._replace(image=image)]))
    ((labels, _),) = found["microsandbox_sandbox_info"].items()
    assert dict(labels)["image"] == image


def test_bytes_of_a_path_that_are_no_text_do_not_spoil_it() -> None:
    assert parse(render([MEASURED._replace(image="./\udcff")]))["microsandbox_sandbox_info"]


@pytest.mark.asyncio
async def test_the_size_is_that_of_the_machine_that_runs(
    home: Path, record: Record, alive: SandboxDirectory
) -> None:
    """Not that which `modify` has asked for since: it counts at the next start."""
    life = _life.read(alive)
    assert life is not None
    _life.write(alive, life._replace(cpus=3, memory_mib=2048))
    found = await Meter(home).measure(record, guest=False)
    assert (found.cpus, found.memory) == (3, 2 << 30)
