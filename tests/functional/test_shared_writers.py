"""Two sandboxes and the host write the same tree: nothing is lost that the host alone would not lose.

`MSB_TEST_SOAK` is how many seconds they write, `MSB_TEST_SEED` what their draws begin with (0: at random; a
failure shows it).
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.msb import Msb, Running
from tests.support.programs import compiled

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.skipif("MSB_TEST_SOAK" not in os.environ, reason="MSB_TEST_SOAK says no number of seconds"),
]

SECONDS = int(os.environ.get("MSB_TEST_SOAK", "0"))
SEED = int(os.environ.get("MSB_TEST_SEED", "1")) or random.randrange(1 << 32)
SANDBOXES = ("one", "two")
# How long a guest may believe what it has seen (docs/mounts.md), and a tick or two of its kernel's clock.
CACHED = {"/auto": 1050, "/none": 0}
LOGS, CURRENT, SLOT, WRITERS = 4, 4, 100, 8
LISTING = (
    "cd {}; find . | sort; find . -type f | sort | xargs -r md5sum;"
    " find . -type l | sort | xargs -r -n 1 readlink"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What they share."""
    tree = tmp_path / "tree"
    for name in ("claims", "own", "current", "churn"):
        (tree / name).mkdir(parents=True)
    for number in range(LOGS):
        (tree / f"log{number}").touch()
    for number in range(CURRENT):
        (tree / f"current/{number}").write_text("h 0 0\n")
    for who in "abcdefgh":
        (tree / f"own/{who}").write_text(who)
    (tree / "records").touch()
    (tree / "counter").write_text("0\n")
    return tree


@pytest.fixture
def sandboxes(msb: Msb, tree: Path) -> Iterator[Path]:
    """Both of them run, with the tree at two places each; the program is what they and the host have."""
    program = tree.with_name("writers")
    program.write_bytes(compiled("writers"))
    program.chmod(0o755)
    options = ["-v", f"{tree}:/auto", "-v", f"{tree}:/none:cache=none", "-v", f"{program}:/writers:ro"]
    try:
        for name in SANDBOXES:
            msb("create", "busybox", "--name", name, *options).succeeded()
        yield program
    finally:
        msb("rm", "--force", *SANDBOXES)


@pytest.fixture
def begin(msb: Msb, tree: Path, sandboxes: Path) -> Iterator[Callable[..., Running]]:
    """Begins one that writes, or looks: `a` to `d` are in the sandboxes' mounts, others on the host."""
    with ExitStack() as running:

        def begin(who: str, *options: object) -> Running:
            more = [str(option) for option in options]
            if who in "abcd":
                sandbox, place = divmod("abcd".index(who), 2)
                command = ["exec", SANDBOXES[sandbox], "--", "/writers", list(CACHED)[place], *more]
                return running.enter_context(msb.start(*command))
            pipe = subprocess.PIPE
            started = subprocess.Popen(
                [str(sandboxes), str(tree), *more], bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe
            )
            return running.enter_context(Running(started))

        yield begin


class Written:
    """What they say that they did."""

    def __init__(self) -> None:
        self.appended: Counter[tuple[str, str]] = Counter()
        self.won: dict[int, list[str]] = defaultdict(list)
        self.slots: dict[tuple[str, int], int] = {}
        self.counted = 0
        self.done: Counter[str] = Counter()

    def add(self, who: str, said: str) -> None:
        assert "wrong" not in said, f"{who}, seed {SEED}: {said}"
        for line in said.splitlines():
            what, first, *second = line.split()
            match what:
                case "appended":
                    self.appended[first, who] = int(second[0])
                case "won":
                    self.won[int(first)].append(who)
                case "slot":
                    self.slots[who, int(first)] = int(second[0])
                case "counted":
                    self.counted += int(first)
                case _:
                    self.done[first] += int(second[0])

    def compare(self, tree: Path) -> None:
        """With what the host sees."""
        for log in range(LOGS):
            lines: dict[str, list[str]] = defaultdict(list)
            for line in (tree / f"log{log}").read_text().splitlines():
                who, number, filler = line.split(" ")
                assert set(filler) == {"0"}, line
                lines[who].append(number)
            for who, numbers in lines.items():
                assert numbers == [str(number) for number in range(self.appended[str(log), who])], (log, who)
            assert set(lines) == {
                who for (name, who), count in self.appended.items() if name == str(log) and count
            }
        claims = {int(path.name): path for path in (tree / "claims").iterdir()}
        assert {number: len(winners) for number, winners in self.won.items()} == dict.fromkeys(claims, 1)
        for claim, path in claims.items():
            assert path.is_dir() if claim % 3 == 1 else path.read_text() == self.won[claim][0], path
        records = (tree / "records").read_bytes()
        for (who, slot), value in self.slots.items():
            at = (slot * WRITERS + "abcdefgh".index(who)) * SLOT
            assert records[at : at + SLOT].strip(b"\0") == (f"{who} {value:097}\n".encode() if value else b"")
        assert int((tree / "counter").read_text()) == self.counted


def changes(tree: Path) -> Iterator[tuple[str, str]]:
    """Changes the host's files, each in one of the ways there are; the file's name and what it is then."""
    path = tree / "looked"
    for number in range(max(6, SECONDS)):
        text = f"{number:06}"
        match number % 6:
            case 0 | 1 | 4:
                # Its size may be what it was, and its time says it alone: as soon as that is another.
                before = path.stat().st_mtime_ns if path.exists() else 0
                while not path.exists() or path.stat().st_mtime_ns == before:
                    with path.open("r+" if number % 6 == 1 else "w") as file:
                        file.write(text)
            case 2:
                with path.open("a") as file:
                    file.write(text)
                text = path.read_text()
            case 3:
                new = path.with_name("new")
                new.write_text(text)
                new.rename(path)
            case _:
                path.unlink()
                text = "-"
        yield path.name, text


def look_at_changes(tree: Path, begin: Callable[..., Running]) -> None:
    """No guest sees what was for longer than it may."""
    places = list(CACHED.values()) * len(SANDBOXES)
    lookers = [begin(who, "look", cached) for who, cached in zip("abcd", places, strict=True)]
    for name, text in changes(tree):
        for looker in lookers:
            looker.stdin.write(f"{name} {text}\n".encode())
        for looker, cached in zip(lookers, places, strict=True):
            said = looker.line().decode()
            assert said.startswith("right " if cached else "right 1\n"), f"{text}: {said}"
    for looker in lookers:
        looker.finish().succeeded()


def test_nothing_is_lost_and_nothing_stays_what_it_was(
    msb: Msb, tree: Path, begin: Callable[..., Running]
) -> None:
    look_at_changes(tree, begin)
    running = {who: begin(who, who, SECONDS, SEED, *(() if who in "ac" else ("exact",))) for who in "abcdef"}
    for one in running.values():
        assert one.line() == b"ready\n"
    for one in running.values():
        one.stdin.write(b"go\n")
    written = Written()
    for who, one in running.items():
        done = one.finish(timeout=SECONDS + 60)
        written.add(who, done.text)
        done.succeeded()
    assert all(written.done.values()), "each was done"
    written.compare(tree)
    # What changed within one tick of the host's clock, and not in size, no guest can tell from what it had.
    os.utime(tree / "records", ns=(0, 0))
    ended = time.monotonic()
    listing = subprocess.run(["sh", "-c", LISTING.format(tree)], capture_output=True, check=False)
    assert listing.returncode == 0, (listing.stderr, sorted(tree.rglob("*")))
    expected = listing.stdout
    for name in SANDBOXES:
        for place, cached in CACHED.items():
            while True:
                begun = time.monotonic()
                seen = msb("exec", name, "--", "sh", "-c", LISTING.format(place)).succeeded().out
                if seen == expected:
                    break
                assert begun - ended <= cached / 1000, f"seed {SEED}: {name} sees at {place} what was before"
