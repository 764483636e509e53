"""`msb df` and `msb prune`."""

from __future__ import annotations

import sys

from microsandbox import storage
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.listing import human_size, print_json, print_names, print_table


def disk_usage(*, as_json: bool) -> None:
    """Print what the home directory holds."""
    found = storage.usage(env.home())
    size = sum(entry.size for entry in found)
    reclaimable = sum(entry.reclaimable for entry in found)
    if as_json:
        print_json(
            {
                "home": str(env.home()),
                "kinds": [
                    {
                        "kind": str(entry.kind),
                        "count": entry.count,
                        "size": entry.size,
                        "reclaimable": entry.reclaimable,
                    }
                    for entry in found
                ],
                "size": size,
                "reclaimable": reclaimable,
            }
        )
        return
    rows = [
        (
            entry.kind.replace("_", " "),
            str(entry.count),
            human_size(entry.size),
            human_size(entry.reclaimable),
        )
        for entry in found
    ]
    rows.append(("total", "", human_size(size), human_size(reclaimable)))
    print_table(("KIND", "COUNT", "SIZE", "RECLAIMABLE"), rows)


def prune(*, everything: bool, volumes: bool, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Remove what is not needed, print it, and exit 1 if some of it could not be removed."""
    pruned = storage.prune(env.home(), everything=everything, volumes=volumes, dry_run=dry_run)
    if quiet:
        print_names([item.name for item in pruned.removed])
    elif as_json:
        print_json(
            {
                "dry_run": dry_run,
                "removed": [
                    {"kind": item.kind, "name": item.name, "size": item.size} for item in pruned.removed
                ],
                "size": pruned.size,
            }
        )
    else:
        rows = [(item.kind, item.name, human_size(item.size)) for item in pruned.removed]
        print_table(("KIND", "NAME", "SIZE"), [*rows, ("total", "", human_size(pruned.size))])
    if dry_run and not quiet:
        report.note("dry run: nothing was changed")
    for failure in pruned.failures:
        report.error(str(failure), failure.hint)
    if pruned.failures:
        sys.exit(report.EXIT_FAILED)
