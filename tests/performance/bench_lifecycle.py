"""What the verbs cost: `msb ls` with many sandboxes against one with none, each verb on one, many at once.

The many are made up: records, directories and locks as sandboxes have them, without a VM.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import figures
from bench_start import IMAGE, MSB, load_image
from microsandbox import _life
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._state import Record, State
from microsandbox_core import env

SANDBOXES = 1000
ACTIVE = 200
"""Those of them whose lock is held."""
TARGET = 0.15
"""Seconds that `msb ls` may take with so many."""
NAME = "msb-bench-lifecycle"
ROUNDS = 5
MANY = int(os.environ.get("MSB_BENCH_SANDBOXES", "100"))
PROGRAMS = 10


@contextmanager
def crowd(home: Path, count: int, active: int) -> Iterator[None]:
    """A home with this many sandboxes."""
    state = State(home)
    held = []
    life = _life.begun()._replace(isolation="emulated")
    for number in range(count):
        identifier = f"{number:016x}"
        directory = SandboxDirectory(home, identifier)
        lock = directory.create()
        running = number < active
        ended = life._replace(status="stopped", cause="requested", reason="it was asked to stop")
        _life.write(directory, life._replace(status="running", pid=os.getpid()) if running else ended)
        state.add(
            Record(
                identifier, f"sandbox-{number}", False, time.time_ns(), "busybox", "sha256:0",
                SandboxConfig().pack(), (("number", str(number)), ("team", "bench")),
            )
        )  # fmt: skip
        if running:
            held.append(lock)
        else:
            os.close(lock)
    state.close()
    try:
        yield
    finally:
        for lock in held:
            os.close(lock)


def listings() -> None:
    """`msb ls` in a home with nothing, and in one with many."""
    figures.title(f"Listings (whole processes), {SANDBOXES} sandboxes, {ACTIVE} of them active")
    before = os.environ.get(env.MSB_HOME)
    with tempfile.TemporaryDirectory(prefix="msb-bench-") as directory:
        try:
            os.environ[env.MSB_HOME] = f"{directory}/none"
            figures.run([MSB, "ls"])
            none = figures.row("msb ls, no sandbox", figures.sample(lambda: figures.run([MSB, "ls"]), 20))
            os.environ[env.MSB_HOME] = f"{directory}/many"
            with crowd(Path(directory, "many"), SANDBOXES, ACTIVE):
                for options in (
                    ["ls"], ["ls", "-q"], ["ls", "--format", "json"], ["ls", "--label", "number=7"], ["ps"],
                ):  # fmt: skip
                    taken = figures.sample(lambda options=options: figures.run([MSB, *options]), 20)  # type: ignore[misc]
                    median = figures.row(f"msb {' '.join(options)}", taken, against=("no sandbox", none))
                    if options == ["ls"]:
                        figures.fact("msb ls against its target", f"{median / TARGET:9.2f} x {TARGET:g} s")
        finally:
            if before is None:
                del os.environ[env.MSB_HOME]
            else:
                os.environ[env.MSB_HOME] = before


def verbs() -> None:
    """Each verb on one sandbox, against `msb --version`."""
    figures.title("Verbs (whole processes), one sandbox")
    nothing = figures.row("msb --version", figures.sample(lambda: figures.run([MSB, "--version"]), 20))
    steps: dict[str, list[str]] = {
        "create": ["create", "-q", IMAGE, "--name", NAME],
        "create --replace": ["create", "-q", IMAGE, "--name", NAME, "--replace"],
        "ping": ["ping", NAME],
        "stop": ["stop", NAME],
        "start": ["start", NAME],
        "restart": ["restart", NAME],
        "stop --force": ["stop", "--force", NAME],
        "rm": ["rm", NAME],
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    figures.run([MSB, "rm", "--force", NAME])
    figures.run([MSB, "run", "-q", IMAGE, "--", "true"])
    figures.run([MSB, "run", "-q", IMAGE, "--", "true"])
    for _ in range(ROUNDS):
        for name, arguments in steps.items():
            taken[name] += figures.sample(lambda a=arguments: figures.run([MSB, *a]), 1, warm_up=0)  # type: ignore[misc]
    for name, values in taken.items():
        figures.row(f"msb {name}", values, against=("msb --version", nothing))
    start = statistics.median(taken["start"])
    restart = statistics.median(taken["restart"]) / (statistics.median(taken["stop"]) + start)
    figures.fact("msb restart", f"{restart:9.2f} x stop and start")


def together() -> None:
    """Many sandboxes started at once by several programs, listed and ended, against one after the other."""
    figures.title(f"{MANY} sandboxes started by {PROGRAMS} programs at once (whole processes)")

    def start(number: int) -> None:
        options = ("-q", "-m", "128M", "--label", f"of={NAME}", IMAGE)
        figures.run([MSB, "create", *options, "--name", f"{NAME}-{number}"])

    def seconds(action: Callable[[], object]) -> float:
        begun = time.perf_counter()
        action()
        return time.perf_counter() - begun

    def all_at_once(programs: int) -> None:
        with ThreadPoolExecutor(programs) as executor:
            list(executor.map(start, range(MANY)))

    end = [MSB, "rm", "--force", "--label", f"of={NAME}"]
    try:
        for number in range(2):
            start(number)  # the templates of the machine, then of the image
        numbers = iter(range(2, 9))
        alone = figures.row(
            "msb create, one after the other", figures.sample(lambda: start(next(numbers)), 7, warm_up=0)
        )
        figures.run(end)
        whole = seconds(lambda: all_at_once(PROGRAMS))
        figures.fact("all of them", f"{whole:9.2f} s  {whole / MANY / alone:.2f} x one after the other, each")
        figures.row("msb ls meanwhile", figures.sample(lambda: figures.run([MSB, "ls"]), 5))
        before = _processor_seconds()
        time.sleep(5)
        used = (_processor_seconds() - before) / 5
        figures.fact("processor use of all of them, idle", f"{used * 100:9.1f} % of one")
    finally:
        ended = seconds(lambda: figures.run(end))
    figures.fact("msb rm --force of all", f"{ended:9.2f} s")


def _processor_seconds() -> float:
    """What the supervisors and VMMs of this user's sandboxes have used so far."""
    listed = subprocess.run([MSB, "ls", "--format", "json"], check=True, capture_output=True).stdout
    ticks = 0
    for entry in json.loads(listed):
        for pid in (entry["supervisor_pid"], entry["vmm_pid"]):
            if pid is not None:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run all of it."""
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    listings()
    load_image(env.home())
    try:
        verbs()
        together()
    finally:
        figures.run([MSB, "rm", "--force", NAME])


if __name__ == "__main__":
    main()
