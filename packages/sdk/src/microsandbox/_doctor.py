"""Whether sandboxes can run here: the machine, and what the state directory holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from microsandbox_core.host.doctor import Check, Report, Status
from microsandbox_core.host.doctor import examine as examine_machine
from microsandbox_core.host.limits import examine_limits

from microsandbox import _state, _volumes, storage
from microsandbox._doctor_network import examine_network
from microsandbox.errors import MicrosandboxError, translated
from microsandbox.info import Status as SandboxStatus
from microsandbox.info import list_sandboxes

__all__ = ["Check", "Report", "Status", "examine"]


def examine(home: Path) -> Report:
    """Look at everything. Installs nothing; raises nothing for what is wrong: the report says it."""
    with translated():
        machine = examine_machine(home)
    # The state first: what lists it would complain of a database that cannot be read.
    checks = [*machine.checks, *examine_limits(home), *examine_network()]
    if home.is_dir():
        database = _check_database(home)
        checks.append(database)
        if database.status is Status.OK:
            checks += _check_content(home)
    ready = machine.ready and all(check.status is not Status.MISSING for check in checks)
    return Report(tuple(checks), machine.vmm, machine.isolation, ready)


def _check_database(home: Path) -> Check:
    import sqlite3

    name = "state database"
    path = home / "state.db"
    if not path.exists():
        return Check(name, Status.OK, "there is none yet")
    try:
        # Not read-only: a database with a log is opened by whoever may write its index.
        with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return Check(
            name,
            Status.MISSING,
            f"{path} cannot be read: {error}",
            f"if it is damaged, move it away; images stay, named sandboxes do not: mv {path} {path}.old",
        )
    if version > _state.SCHEMA_VERSION:
        seen = f"{path} has schema {version}, and this version knows {_state.SCHEMA_VERSION}"
        return Check(name, Status.MISSING, seen, "update microsandbox, or set MSB_HOME to another directory")
    if found != "ok":
        return Check(
            name, Status.MISSING, f"{path} is damaged: {found}", f"move it away: mv {path} {path}.old"
        )
    return Check(name, Status.OK, f"{path}, schema {version}, intact")


def _check_content(home: Path) -> Iterator[Check]:
    try:
        # Listing would make a database.
        sandboxes = list_sandboxes(home) if (home / "state.db").exists() else []
        found = {entry.kind: entry for entry in storage.usage(home)}
    except MicrosandboxError as error:
        yield Check("state", Status.WARNING, str(error), error.hint)
        return
    crashed = [info.name for info in sandboxes if info.status is SandboxStatus.CRASHED]
    running = sum(info.status.active for info in sandboxes)
    seen = f"{running} running, {len(sandboxes) - running} not"
    if crashed:
        seen += f"; {len(crashed)} crashed: {', '.join(crashed[:3])}" + (", ..." if len(crashed) > 3 else "")
        yield Check("sandboxes", Status.WARNING, seen, f"msb inspect {crashed[0]}; msb logs {crashed[0]}")
    else:
        yield Check("sandboxes", Status.OK, seen)
    templates = found[storage.Kind.TEMPLATES]
    if templates.count:
        yield Check("templates", Status.OK, f"{templates.count}, {templates.size >> 20} MiB")
    else:
        seen = "none yet: the first sandbox of a size boots its kernel"
        yield Check("templates", Status.OK, seen, None)
    yield from _check_volumes(home)
    leftovers = found[storage.Kind.LEFTOVERS]
    if leftovers.count:
        seen = f"{leftovers.count} directories, files or locks of processes that are gone"
        yield Check("leftovers", Status.WARNING, f"{seen}, {leftovers.size >> 20} MiB", "msb prune")
    else:
        yield Check("leftovers", Status.OK, "none")


def _check_volumes(home: Path) -> Iterator[Check]:
    names = [path.name for path in _volumes.entries(home)]
    damaged = []
    for name in names:
        try:
            _volumes.find(home, name)
        except MicrosandboxError as error:
            damaged.append(error)
    if damaged:
        yield Check("volumes", Status.WARNING, str(damaged[0]), damaged[0].hint)
    elif names:
        yield Check("volumes", Status.OK, str(len(names)))
