"""Builds an image, loads it, and runs three things in microVMs: what `make demo` shows."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import busybox_image
from microsandbox_core import env
from microsandbox_core.host.doctor import examine

_COUNT = 100_000
_NUMBERS = "".join(f"{number}\n" for number in range(1, _COUNT + 1))
_DIGEST = hashlib.sha256(_NUMBERS.encode()).hexdigest()


@dataclass(frozen=True)
class Act:
    """One sandbox: what it shows, what runs in it, and what must come of it."""

    title: str
    command: tuple[str, ...]
    exit_code: int = 0
    stdout: str | None = None  # None: whatever it is, as long as there is some


ACTS = (
    Act("Who am I in there, and which kernel and mounts do I see?", ("tour",)),
    Act(
        "A computation whose result the host knows as well",
        ("sh", "-c", f"seq 1 {_COUNT} | sha256sum"),
        stdout=f"{_DIGEST}  -\n",
    ),
    Act(
        "A command that fails: its exit code comes through",
        ("sh", "-c", "echo 'the answer goes to stdout'; echo 'and the complaint to stderr' >&2; exit 7"),
        exit_code=7,
        stdout="the answer goes to stdout\n",
    ),
)


def main() -> int:
    """Run the demo; 0 if everything came out as it must."""
    msb = _find_msb()
    try:
        layout = _image_layout()
    except (busybox_image.Unavailable, OSError) as error:
        print(f"error: no image to show: {error}", file=sys.stderr)
        return 1
    print(f"This machine is {examine(env.home()).summary}.\n")
    print("An image, from the files of a Debian package:")
    if not _load(msb, layout):
        return 1
    right = [_show(msb, number, act) for number, act in enumerate(ACTS, start=1)]
    if not all(right):
        print(f"\nerror: {right.count(False)} of {len(right)} did not do what they must", file=sys.stderr)
        return 1
    print("\nEach of them ran in a microVM of its own, which is gone again.")
    print("Try it yourself:  uv run msb run busybox -- sh -c 'uname -a; ls /'")
    return 0


def _find_msb() -> str:
    # The one installed beside this interpreter, whatever else PATH has.
    beside = Path(sys.executable).with_name("msb")
    found = str(beside) if beside.exists() else shutil.which("msb")
    if found is None:
        sys.exit("error: msb is not installed\nhint: run `make setup`")
    return found


def _image_layout() -> Path:
    """The OCI layout, built once and kept until what builds it changes."""
    recipe = hashlib.sha256(Path(busybox_image.__file__).read_bytes()).hexdigest()[:12]
    kept = env.home() / "demo"
    layout = kept / f"busybox-{recipe}"
    if (layout / "index.json").is_file():
        return layout
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".busybox-", dir=kept) as directory:
        built = busybox_image.build(Path(directory) / "layout")
        shutil.rmtree(layout, ignore_errors=True)
        built.rename(layout)
    return layout


def _load(msb: str, layout: Path) -> bool:
    started = time.perf_counter()
    done = _run([msb, "load", f"oci:{layout}", "-t", "busybox"])
    print(f"  $ msb load oci:{layout} -t busybox")
    _indent(done.stdout + done.stderr)
    _outcome(time.perf_counter() - started, done.returncode)
    return done.returncode == 0


def _show(msb: str, number: int, act: Act) -> bool:
    print(f"\n{number}. {act.title}", flush=True)
    print(f"  $ msb run busybox -- {_shown(act.command)}", flush=True)
    started = time.perf_counter()
    done = _run([msb, "run", "busybox", "--", *act.command])
    took = time.perf_counter() - started
    _indent(done.stdout)
    _indent(done.stderr, "! ")
    _outcome(took, done.returncode)
    wrong = []
    if done.returncode != act.exit_code:
        wrong.append(f"the exit code is {done.returncode} and must be {act.exit_code}")
    if act.stdout is None and not done.stdout.strip():
        wrong.append("it printed nothing")
    if act.stdout is not None and done.stdout != act.stdout:
        wrong.append(f"it must print {act.stdout!r}")
    for reason in wrong:
        print(f"  wrong: {reason}")
    return not wrong


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=os.environ
    )


def _shown(command: tuple[str, ...]) -> str:
    return " ".join(f'"{word}"' if " " in word else word for word in command)


def _indent(text: str, mark: str = "") -> None:
    for line in text.splitlines():
        print(f"  | {mark}{line}".rstrip())


def _outcome(seconds: float, exit_code: int) -> None:
    print(f"  {seconds:.2f} s, exit code {exit_code}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
