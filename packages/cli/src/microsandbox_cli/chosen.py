"""The sandboxes that a verb is for, and what it exits with when it fails for one of them.

Light, because some verbs are little more than what they import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from microsandbox import _config, _create
from microsandbox.errors import ImageError, MicrosandboxError, StartError, StateError
from microsandbox.info import Status
from microsandbox_core import env

from microsandbox_cli import report


def chosen(
    verb: str,
    names: Sequence[str],
    labels: Sequence[str],
    wanted: Callable[[Status], bool] = lambda status: True,
) -> list[str]:
    """The names, then those that have all of the labels and a status in which the verb does something."""
    if not names and not labels:
        report.error("no sandbox was named", f"msb {verb} NAME..., or msb {verb} --label KEY=VALUE")
        sys.exit(report.EXIT_USAGE)
    found = list(names)
    if labels:
        for record, seen in _create.reconcile(env.home()):
            if _config.selects(labels, record.labels) and wanted(seen.status):
                found.append(record.name)
    return list(dict.fromkeys(found))


def exit_code(failed: MicrosandboxError, *, alone: bool) -> int:
    """125 if only one sandbox was named, and it is the sandbox itself that failed; else 1: of several, that
    one has failed is all there is to say."""
    itself = alone and isinstance(failed, StartError | StateError | ImageError)
    return report.EXIT_SANDBOX if itself else report.EXIT_FAILED
