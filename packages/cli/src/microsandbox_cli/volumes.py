"""`msb volume create`, `ls`, `inspect` and `rm`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from microsandbox import _config, _volumes
from microsandbox._volumes import VolumeKind, VolumeRecord, VolumeUse
from microsandbox.errors import MicrosandboxError
from microsandbox.storage import allocated
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.listing import age, human_size, print_json, print_names, print_table


def create(name: str, *, size: str | None, quota: str | None, kind: str | None, label: Sequence[str]) -> None:
    """Make a volume and print its name."""
    length = None if size is None else _config.parse_size(size, "--size")
    most = None if quota is None else _config.parse_size(quota, "--quota")
    sort = VolumeKind(kind) if kind else VolumeKind.DIRECTORY if size is None else VolumeKind.DISK
    _volumes.create(env.home(), name, kind=sort, size=length, quota=most, labels=_config.parse_labels(label))
    sys.stdout.write(name + "\n")


def list_all(*, label: Sequence[str], quiet: bool, as_json: bool) -> None:
    """Print the volumes with all these labels."""
    found = [record for record in _volumes.every(env.home()) if _config.selects(label, record.labels)]
    if quiet:
        print_names([record.name for record in found])
        return
    uses = _volumes.uses(env.home())
    if as_json:
        print_json([_plain(record, uses.get(record.name, [])) for record in found])
        return
    now = time.time()
    rows = [
        (
            record.name,
            str(record.kind),
            _limit(record),
            age(now - record.created_ns / 1e9),
            ", ".join(sorted({use.sandbox for use in uses.get(record.name, [])})) or "-",
        )
        for record in found
    ]
    print_table(("NAME", "KIND", "SIZE", "CREATED", "USED BY"), rows)


def inspect(name: str) -> None:
    """Print one volume as JSON."""
    record = _volumes.find(env.home(), name)
    # What a directory holds takes time to count.
    shown = _plain(record, _volumes.uses(env.home()).get(name, []))
    print_json({**shown, "used": allocated(record.content)})


def remove(names: Sequence[str], *, force: bool) -> None:
    """Remove volumes; go on after a failure and exit 1 at the end."""
    failed = False
    for name in names:
        try:
            _volumes.remove(env.home(), name, force=force)
            sys.stdout.write(name + "\n")
        except MicrosandboxError as failure:
            report.error(str(failure), failure.hint)
            failed = True
    if failed:
        sys.exit(report.EXIT_FAILED)


def _limit(record: VolumeRecord) -> str:
    limit = record.size if record.quota is None else record.quota
    return "-" if limit is None else human_size(limit)


def _plain(record: VolumeRecord, uses: Sequence[VolumeUse]) -> dict[str, object]:
    return {
        "name": record.name,
        "kind": str(record.kind),
        "path": str(record.content),
        "size": record.size,
        "quota": record.quota,
        "labels": dict(record.labels),
        "created_at": datetime.fromtimestamp(record.created_ns / 1e9, UTC).isoformat(),
        "owner": record.owner,
        "used_by": [use._asdict() for use in uses],
    }
