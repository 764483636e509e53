"""L03, L09: a fault at any step of a verb, in `msb` or in the supervisor; also in several processes at once.

What a step is, and which faults it can meet, is in `tests/support/faults.py`. After each the listing is true,
the next command converges, and in the end nothing is left. `MSB_TEST_ROUNDS` says how many faults each test
draws (0: every one there is), `MSB_TEST_SEED` which (0: at random; a failure shows the seed).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.faults import MSB, SUPERVISOR, Fault, Step
from tests.support.msb import Done, Msb, Running
from tests.support.truth import assert_clean, assert_listing_is_true, settled
from tests.support.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.once]

ROUNDS = int(os.environ.get("MSB_TEST_ROUNDS", "4"))
SEED = int(os.environ.get("MSB_TEST_SEED", "1")) or random.randrange(1 << 32)

CREATE = ("create", "-q", "-m", "128M", "busybox", "--name")
MARK = "echo kept > /root/mark; sync"


@dataclass(frozen=True)
class Verb:
    """A verb and what it needs: `prepared`, commands that meet nothing, then `lives`, the one that starts the
    supervisor which the verb is about. `keeps`: the file with the mark is there in whatever is left."""

    arguments: tuple[str, ...]
    prepared: tuple[tuple[str, ...], ...] = ()
    lives: tuple[str, ...] | None = None
    keeps: bool = False


STOPPED = (("run", "-m", "128M", "--name", "one", "busybox", "--", "sh", "-c", MARK),)
VERBS = {
    "create": Verb((*CREATE, "one")),
    "create --replace": Verb((*CREATE, "one", "--replace"), STOPPED, ("start", "one")),
    "start": Verb(("start", "one"), STOPPED, keeps=True),
    "stop": Verb(("stop", "one"), STOPPED, ("start", "one"), keeps=True),
    "stop --force": Verb(("stop", "--force", "one"), STOPPED, ("start", "one"), keeps=True),
    "rm": Verb(("rm", "one"), STOPPED, keeps=True),
    "rm --force": Verb(("rm", "--force", "one"), STOPPED, ("start", "one"), keeps=True),
    "run": Verb(("run", "-m", "128M", "busybox", "--", "true")),
}


class Faulty:
    """`msb` with faults, in a home of its own."""

    def __init__(self, msb: Msb, directory: Path) -> None:
        self.msb = msb
        self.notes = directory / "notes"
        self.temporary = Path(msb.environ["TMPDIR"])

    def start(self, fault: Fault | None, arguments: Sequence[str]) -> Running:
        """Start a command that meets the fault."""
        process = subprocess.Popen(
            [sys.executable, faults.__file__, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env={**self.msb.environ, **faults.environment(self.msb.home, self.notes, fault)},
        )  # fmt: skip
        return Running(process)

    def __call__(self, fault: Fault | None, arguments: Sequence[str]) -> Done:
        with self.start(fault, arguments) as command:
            return command.finish(b"", timeout=120)

    def prepare(self, verb: Verb) -> None:
        """What comes before the verb; none of it may fail, whatever was before."""
        for arguments in verb.prepared:
            self.msb(*arguments).succeeded()

    def steps(self, verb: Verb) -> list[Step]:
        """The steps of the verb and of the supervisor that it starts or ends, without a fault.

        Of several in a row that are the same (the pieces of a copy) there are the first and the last.
        """
        faults.fresh(self.notes)
        self.prepare(verb)
        if verb.lives is not None:
            self(None, verb.lives).succeeded()
        started = [step for step in faults.steps(self.notes) if step.role == SUPERVISOR]
        faults.fresh(self.notes)
        self(None, verb.arguments).succeeded()
        self.clean_up()
        found = started + faults.steps(self.notes)
        chosen = []
        for role in (MSB, SUPERVISOR):
            ours = (step for step in found if step.role == role)
            for _, same in groupby(ours, key=lambda step: (step.operation, step.subject)):
                alike = list(same)
                chosen += alike[:1] + alike[1:][-1:]
        return chosen

    def clean_up(self) -> None:
        """Remove the sandboxes; nothing may be left then."""
        for name in self.msb("ls", "-q").succeeded().text.split():
            self.msb("rm", "--force", name).succeeded()
        host = self.msb.host
        host.wait_empty(within=60)
        assert host.rows() == []
        # Files of the cache that a killed process was making go with the next one that makes any, or so.
        self.msb("prune", "-q").succeeded()
        assert [path for path in host.tree() if path.endswith((".tmp", ".new"))] == []
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def faulty(_faulty: Faulty) -> Iterator[Faulty]:
    """`msb` with faults, in a home that has no sandboxes."""
    yield _faulty
    faults.disarm(_faulty.notes)
    if _faulty.msb.host.leftovers():
        _faulty.msb.remove_everything()


@pytest.fixture(scope="module")
def _faulty(
    plain_cache: Path,
    settings: dict[str, str],
    run_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Faulty]:
    """`msb` in a home that it has started sandboxes in."""
    home = Path(tempfile.mkdtemp(dir=run_directory))
    subprocess.run(["cp", "-a", "--sparse=always", plain_cache, home], check=True)
    msb = Msb(home, settings).with_settings(TMPDIR=str(tmp_path_factory.mktemp("temporary")))
    for _ in range(2):
        msb.run("true", options=["-m", "128M"]).succeeded()
    yield Faulty(msb, tmp_path_factory.mktemp("notes"))
    for process in msb.host.processes():
        process.kill()
        process.wait_gone(within=60)
    shutil.rmtree(home)


def drawn(steps: Sequence[Step], chance: random.Random) -> Iterator[Fault]:
    """As many of the steps' faults as there are to be rounds, none of them twice."""
    every = [fault for step in steps for fault in step.faults()]
    chance.shuffle(every)
    yield from every[:ROUNDS] if ROUNDS else every


def assert_told_well(done: Done) -> None:
    """A command that met a fault, or its consequences, ends with a code and a line that users can read."""
    assert done.code in (0, 1, 125, 128 + 9), done
    lines = done.complaint.splitlines()
    assert all(line.startswith(("error: ", "hint: ", "note: ")) for line in lines), done.complaint
    if done.code in (1, 125):
        assert lines, done


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_a_fault_at_any_step_of_a_verb(faulty: Faulty, name: str) -> None:
    verb, msb, host = VERBS[name], faulty.msb, faulty.msb.host
    chance = random.Random(f"{SEED} {name}")
    sys.stdout.write(f"seed {SEED}\n")  # shown when it fails
    for fault in drawn(faulty.steps(verb), chance):
        sys.stdout.write(f"{fault}\n")
        faults.fresh(faulty.notes)
        faulty.prepare(verb)
        if verb.lives is not None:
            if fault.role == SUPERVISOR:
                assert_told_well(faulty(fault, verb.lives))
            else:
                msb(*verb.lives).succeeded()
        done = faulty(fault, verb.arguments)
        faults.disarm(faulty.notes)
        sys.stdout.write("".join(f"    met at {step}\n" for step in faults.met(faulty.notes)[:3]))
        assert_told_well(done)

        eventually(lambda: settled(msb), within=60, what="supervisors without creators have gone")
        assert_listing_is_true(msb, host)
        if host.rows():
            assert host.rows() == ["one"]
            if not host.running():
                msb("start", "one").succeeded()
            if verb.keeps:
                assert msb("exec", "one", "--", "cat", "/root/mark").succeeded().text == "kept\n"
            msb("stop", "one").succeeded()
            assert_clean(host)
        faulty.clean_up()


NAMES = ("one", "two", "three")
STORM: tuple[Callable[[str], tuple[str, ...]], ...] = (
    lambda name: (*CREATE, name),
    lambda name: (*CREATE, name, "--replace"),
    lambda name: ("start", name),
    lambda name: ("stop", "-t", "2s", name),
    lambda name: ("stop", "--force", name),
    lambda name: ("rm", name),
    lambda name: ("rm", "--force", name),
    lambda name: ("run", "-m", "128M", "busybox", "--", "true"),
    lambda name: ("exec", name, "--", "true"),
)


@pytest.mark.slow
def test_faults_in_several_processes_at_once(faulty: Faulty) -> None:
    """L06: six verbs at a time on three names, each of which meets a fault somewhere."""
    msb, host = faulty.msb, faulty.msb.host
    chance = random.Random(SEED)
    sys.stdout.write(f"seed {SEED}\n")  # shown when it fails
    every = [step for verb in ("create", "stop", "rm --force") for step in faulty.steps(VERBS[verb])]
    for _ in range(ROUNDS or 100):
        commands = []
        faults.fresh(faulty.notes)
        for _ in range(6):
            arguments = chance.choice(STORM)(chance.choice(NAMES))
            fault = chance.choice(chance.choice(every).faults())
            sys.stdout.write(f"{' '.join(arguments)}: {fault}\n")
            commands.append(faulty.start(fault, arguments))
        for command in commands:
            with command:
                assert_told_well(command.finish(b"", timeout=240))
        faults.disarm(faulty.notes)
        sys.stdout.write("--\n")
        eventually(lambda: settled(msb), within=60, what="supervisors without creators have gone")
        assert_listing_is_true(msb, host)
        for name in host.rows():
            if name not in {str(sandbox) for sandbox in host.running()}:
                started = msb("start", name)
                assert started.code == 0 or "is running" in started.complaint, started
        assert_listing_is_true(msb, host)
        faulty.clean_up()
