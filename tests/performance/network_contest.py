"""What the benchmarks of the network share: the loads, their servers, and how figures are made and shown."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from figures import fact, title

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.internet import WWW, Internet  # noqa: E402 - found by the line above
from tests.support.namespace import why_not  # noqa: E402

LOAD = Path(__file__).with_name("network_load.py")
OURS = "microsandbox"
OURS_TAP = "ours on a TAP"
ON_TAP = (OURS_TAP, "pasta", "slirp4netns")
"""Who reads the guest's TAP itself: compared with each other."""
QUESTIONS = 40
IPERF3 = "iperf3"

# What is measured, and its unit.
ROWS = {
    "download": ("one flow to the guest", "MB/s"),
    "upload": ("one flow from the guest", "MB/s"),
    "downloads": ("eight flows to the guest", "MB/s"),
    "iperf3-download": ("iperf3 -R, one flow to the guest", "MB/s"),
    "iperf3-upload": ("iperf3, one flow from the guest", "MB/s"),
    "echo": ("request and response", "/s"),
    "connect": ("connections", "/s"),
    "dns-same": ("DNS, the same name", "us"),
    "dns-new": ("DNS, a new name each", "us"),
}

Figures = dict[str, float]
Load = Callable[[str, str, float], Figures]
"""What a client in the guest measured: of a mode, with an address, and an amount of seconds or questions."""


def is_iperf3(mode: str) -> bool:
    """Whether iperf3 is the load."""
    return mode.startswith(IPERF3)


def iperf3_arguments(mode: str, address: str, seconds: float) -> list[str]:
    """Those of iperf3's client, which counts whole seconds."""
    back = ["-R"] if mode == "iperf3-download" else []
    return ["-c", address, "-t", str(max(1, round(seconds))), "-i", "0", "-J", *back]


def iperf3_figures(printed: str) -> Figures:
    """Bytes and seconds as the end has them that receives, out of what `-J` prints."""
    found = json.loads(printed)
    if "error" in found:
        raise RuntimeError(f"iperf3: {found['error']}")
    received = found["end"]["sum_received"]
    return {"bytes": received["bytes"], "seconds": received["seconds"]}


def processor(process: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    modes: Sequence[str], load: Load, used: Callable[[], float], nameserver: str, seconds: float
) -> Figures:
    """Figures by name: MB/s, 1/s, seconds of processor per GB, microseconds of DNS. `used`: seconds of the
    processor until now."""
    figures: Figures = {}
    for mode in modes:
        is_dns = mode.startswith("dns")
        before = used()
        found = load(mode, nameserver if is_dns else WWW[0], QUESTIONS if is_dns else seconds)
        spent = used() - before
        if "bytes" in found:
            figures[mode] = found["bytes"] / found["seconds"] / 1e6
            # The client's warm-up is part of what was used; it is a share of the whole, the same for all.
            figures[f"{mode}: processor"] = spent / (found["bytes"] / 1e9)
        elif is_dns:
            figures[mode] = found["seconds"] / found["count"] * 1e6
        else:
            figures[mode] = found["count"] / found["seconds"]
            figures[f"{mode}: processor"] = spent / found["count"] * 1e6
    return figures


def show(figures: dict[str, Figures]) -> None:
    """One line for each figure, with ours, on the same kind of link, as a ratio to each of the others."""
    labels = {mode: f"{text}, {unit}" for mode, (text, unit) in ROWS.items()}
    labels |= {
        f"{mode}: processor": "  processor, s/GB" if unit == "MB/s" else "  processor, us each"
        for mode, (_, unit) in ROWS.items()
        if unit != "us"
    }
    labels["idle"] = "memory of a flow at rest, bytes"
    names = list(figures)
    fact("", "".join(f"{name:>14}" for name in names))
    keys = [key for mode in ROWS for key in (mode, f"{mode}: processor") if key in labels]
    # What is not measured in every benchmark is left out.
    for key in [key for key in [*keys, "idle"] if any(key in each for each in figures.values())]:
        values = [figures[name].get(key, float("nan")) for name in names]
        line = "".join(f"{value:14.2f}" if value < 10 else f"{value:14.0f}" for value in values)
        ratios = [_ratio(name, key, figures) for name in names if name not in (OURS, OURS_TAP)]
        if any(ratios):
            line += "   ratios " + " ".join(ratio for ratio in ratios if ratio)
        fact(labels[key], line)


def _ratio(name: str, key: str, figures: dict[str, Figures]) -> str:
    ours = OURS_TAP if name in ON_TAP else OURS
    mine, theirs = (figures.get(each, {}).get(key, 0.0) for each in (ours, name))
    return f"{mine / theirs:.2f}" if mine and theirs else ""


def parser(description: str | None, contestants: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all have."""
    made = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    made.add_argument("--seconds", type=float, default=2.0)
    made.add_argument("--mtu", default="1500,65520")
    made.add_argument("--only", default=",".join(contestants))
    made.add_argument("--load", choices=("all", "own", IPERF3), default="all")
    return made


def chosen(modes: Sequence[str], load: str) -> list[str]:
    """Those of `modes` that `--load` asks for."""
    return [mode for mode in modes if load == "all" or is_iperf3(mode) == (load == IPERF3)]


def hold(
    options: argparse.Namespace,
    heading: str,
    programs: dict[str, str],
    contest: Callable[[Internet, str, int, str, float], Figures],
) -> None:
    """Have `contest` measure everybody, with each MTU: it is given the internet, name, MTU, load and seconds,
    and raises `RuntimeError` for whoever cannot be measured. `programs`: what a name takes."""
    if (reason := why_not()) is not None:
        print(f"left out: {reason}")
        return
    names, load = options.only.split(","), options.load
    for name in [name for name in names if name in programs and shutil.which(programs[name]) is None]:
        print(f"left out: {name} is not installed")
        names.remove(name)
    if load != "own" and shutil.which(IPERF3) is None:
        print("left out: iperf3 is not installed")
        if load == IPERF3:
            return
        load = "own"
    print(f"processors: {os.cpu_count()}, load: {os.getloadavg()[0]:.2f}")
    with Internet() as internet, _servers(internet, load):
        for mtu in map(int, options.mtu.split(",")):
            title(f"{heading}MTU {mtu}")
            figures = {}
            for name in names:
                try:
                    figures[name] = contest(internet, name, mtu, load, options.seconds)
                except RuntimeError as error:
                    print(f"left out: {name}: {error}")
            if figures:
                show(figures)


@contextmanager
def _servers(internet: Internet, load: str) -> Iterator[None]:
    lines = [([sys.executable, "-I", str(LOAD), "serve"], b"ready")]
    if load != "own":
        lines.append(([IPERF3, "-s", "--forceflush"], b"Server listening"))
    with ExitStack() as closing:
        for line, word in lines:
            server = closing.enter_context(
                subprocess.Popen(internet.wan.command(*line), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            closing.callback(server.kill)
            assert server.stdout is not None
            while word not in (told := server.stdout.readline()):
                if not told:
                    raise RuntimeError(f"{line[0]} does not serve")
        yield
