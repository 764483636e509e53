"""`msb self update` and `msb self uninstall`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from microsandbox import _trees, storage
from microsandbox.errors import StateError
from microsandbox.info import list_sandboxes
from microsandbox_core import env

from microsandbox_cli import installed, report
from microsandbox_cli.installation import Installation, detect, missing_program
from microsandbox_cli.listing import human_size

Runner = Callable[[Sequence[str]], int]

_OURS = (
    *("state.db", "state.db-wal", "state.db-shm", "registry-logins.json", "registry-logins.json.lock"),
    *("sandboxes/.guard", "sandboxes/" + "[0-9a-f]" * 16),
    *(
        f"cache/{name}"
        for name in ("blobs", "boot", "downloads", "images", "kernels", "layers", "locks", "refs", "rootfs")
    ),
    *(f"cache/{name}" for name in ("templates", "tmp", "uppers", "emulation-announced", "kvm-*", "tsc-*")),
    *("volumes/.*.tmp", "cache/.*.tmp", "lib/libkrunfw.so.*", "lib/.*.tmp", "bin/.*.lock"),
)
"""What the product keeps in its home, besides commands. So narrow because MSB_HOME may be any directory, with
a `bin`, a `lib` and a `cache` of others'."""
_COMPLETIONS = (
    "~/.local/share/bash-completion/completions/msb",
    "~/.config/fish/completions/msb.fish",
)


def run(command: Sequence[str]) -> int:
    """Run a program; its exit code."""
    return subprocess.run(command, check=False).returncode


def update(*, dry_run: bool, runner: Runner = run, found: Installation | None = None) -> None:
    """Bring the newest version the way this one came, or say how; exit 1 if that failed."""
    found = found or _installation()
    command = found.update_command()
    if command is None:
        report.note(f"msb {found.version} came with {found.kind}; to update it: {found.update_advice()}")
        return
    if dry_run:
        sys.stdout.write(shlex.join(command) + "\n")
        return
    _run(command, runner, "update")
    report.note("note: `msb setup` brings the guest kernel up to date")


def uninstall(
    *,
    yes: bool,
    keep_data: bool,
    runner: Runner = run,
    found: Installation | None = None,
    ask: Callable[[str], str] = input,
) -> None:
    """Remove the commands, the state directory and the packages; exit 1 if something refuses."""
    found = found or _installation()
    home = env.home()
    running = [info.name for info in list_sandboxes(home) if info.status.active] if home.is_dir() else []
    if running and not keep_data:
        shown = ", ".join(running[:3]) + (", ..." if len(running) > 3 else "")
        what = "a sandbox is running" if len(running) == 1 else f"{len(running)} sandboxes are running"
        report.error(f"{what}: {shown}", f"msb stop {' '.join(running)}")
        sys.exit(report.EXIT_FAILED)
    command = found.removal_command()
    for line in _plan(home, keep_data, found, command):
        report.note(line)
    if not yes and not _confirmed(ask):
        sys.exit(report.EXIT_FAILED)
    if not keep_data and home.is_dir():
        _remove_home(home)
    for path in _our_completions():
        path.unlink(missing_ok=True)
    if command is None:
        report.note(f"msb came with {found.kind}; to remove the program: {found.removal_advice()}")
        return
    # Last, because it takes away the ground under this process.
    _run(command, runner, "uninstall")


def _installation() -> Installation:
    found = detect()
    if found is None:
        raise StateError(
            "how microsandbox was installed cannot be told: there is no record of microsandbox-cli",
            hint="update or remove it the way it was installed",
        )
    return found


def _run(command: list[str], runner: Runner, verb: str) -> None:
    missing = missing_program(command)
    if missing is not None:
        report.error(
            f"{missing} is not on PATH, and msb was installed with it", f"run: {shlex.join(command)}"
        )
        sys.exit(report.EXIT_FAILED)
    report.note(f"running: {shlex.join(command)}")
    sys.stderr.flush()
    code = runner(command)
    if code:
        report.error(f"the {verb} failed with exit code {code}", f"run it yourself: {shlex.join(command)}")
        sys.exit(report.EXIT_FAILED)


def _plan(home: Path, keep_data: bool, found: Installation, command: list[str] | None) -> Iterator[str]:
    yield "this removes:"
    if not keep_data and home.is_dir():
        for entry in storage.usage(home):
            if entry.count:
                yield f"  {entry.kind.replace('_', ' ')}: {entry.count}, {human_size(entry.size)}"
        for one in installed.installed():
            yield f"  the command {one.name}"
        yield f"  the directory {home}"
    for path in _our_completions():
        yield f"  {path}"
    if command is not None:
        yield f"  microsandbox {found.version}: {shlex.join(command)}"


def _confirmed(ask: Callable[[str], str]) -> bool:
    if not sys.stdin.isatty():
        report.error("standard input is no terminal to ask at", "to remove all of this: --yes")
        return False
    try:
        return ask("Remove all of this? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _remove_home(home: Path) -> None:
    """Remove what is ours, and every directory that is empty then."""
    try:
        for one in installed.installed():
            one.path.unlink(missing_ok=True)
        volumes = [record.parent for record in home.glob("volumes/*/volume.json")]
        for path in [*volumes, *(path for pattern in _OURS for path in home.glob(pattern))]:
            if path.is_dir() and not path.is_symlink():
                _trees.remove(path)
            else:
                path.unlink(missing_ok=True)
        for directory in (
            home / "sandboxes",
            home / "volumes",
            home / "cache",
            home / "lib",
            home / "bin",
            home,
        ):
            if directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir()):
                directory.rmdir()
        others = sorted(entry.name for entry in home.iterdir()) if home.is_dir() else []
    except OSError as error:
        raise StateError(
            f"cannot remove {error.filename}: {error.strerror}", hint="remove it, and run this again"
        ) from error
    if others:
        report.note(f"note: {home} stays, because there is more in it: {', '.join(others[:5])}")
    elif home.is_symlink():
        report.note(f"note: {home} is a link, and stays")


def _our_completions() -> list[Path]:
    """Completion scripts of ours where a shell looks for them."""
    found = []
    for place in _COMPLETIONS:
        path = Path(place).expanduser()
        try:
            with path.open("rb") as file:
                if file.read(24).startswith(b"# Completion of msb"):
                    found.append(path)
        except OSError:
            pass  # not there, or not ours to read
    return found
