"""`msb ping` and `msb touch`: a question to the agents of running sandboxes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from microsandbox import _create
from microsandbox._directory import SandboxDirectory
from microsandbox._ping import ping as ask
from microsandbox.errors import MicrosandboxError
from microsandbox.info import Status
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.chosen import chosen, exit_code


def ping(names: Sequence[str], *, label: Sequence[str] = ()) -> None:
    """Print how long the agents of running sandboxes take to answer."""
    _each("ping", names, label, lambda name, seconds: f"{name}: {seconds * 1e3:.2f} ms")


def touch(names: Sequence[str], *, label: Sequence[str] = ()) -> None:
    """Let the idle timeouts of running sandboxes begin anew: a question is activity."""
    _each("touch", names, label, lambda name, seconds: name)


def _each(verb: str, names: Sequence[str], label: Sequence[str], said: Callable[[str, float], str]) -> None:
    """Ask them one after the other, print what is said of each, and go on after a failure."""
    home = env.home()
    wanted = chosen(verb, names, label, lambda status: status is Status.RUNNING)
    code = 0
    for name in wanted:
        try:
            record = _create.find(home, name)
            seconds = ask(SandboxDirectory(home, record.id), record.name)
        except MicrosandboxError as failed:
            report.failure(failed)
            code = max(code, exit_code(failed, alone=len(wanted) == 1))
        else:
            sys.stdout.write(said(name, seconds) + "\n")
            sys.stdout.flush()
    sys.exit(code)
