"""`msb setup` and `msb doctor`."""

from __future__ import annotations

import sys

from microsandbox._doctor import examine
from microsandbox.errors import translated
from microsandbox_core import env
from microsandbox_core.errors import CoreError
from microsandbox_core.host.setup import plan, run

from microsandbox_cli import report
from microsandbox_cli.listing import print_json


def setup(*, dry_run: bool) -> None:
    """Say what is there and what is missing, and put the missing things there."""
    with translated():
        taken = run(plan(env.home()), dry_run=dry_run, report=report.note)
    if not dry_run:
        _make_template()
    if dry_run:
        report.note("dry run: nothing was changed")
    elif not taken:
        report.note("everything is in place")


def _make_template() -> None:
    """Boot once, so that no sandbox of the default size has to. Not a failure of the setup: a sandbox
    tries again, and boots if it has to."""
    from microsandbox._machine import ensure_default_template

    try:
        if ensure_default_template(env.home()):
            report.note("template: booted the kernel once; sandboxes of the default size start from there")
    except CoreError as error:
        report.note(f"template: not made ({error}); sandboxes boot their kernels")


def doctor(*, as_json: bool) -> None:
    """Print the report; exit 1 if sandboxes cannot run."""
    found = examine(env.home())
    if as_json:
        print_json(found.to_dict())
    else:
        width = max(len(check.name) for check in found.checks)
        for check in found.checks:
            sys.stdout.write(f"{check.status:<7}  {check.name:<{width}}  {check.seen}\n")
            if check.fix:
                sys.stdout.write(f"{'':<7}  {'':<{width}}  fix: {check.fix}\n")
        sys.stdout.write(found.summary + "\n")
    if not found.ready:
        sys.exit(report.EXIT_FAILED)
