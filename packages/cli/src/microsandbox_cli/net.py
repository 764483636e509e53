"""`msb net`: what a policy says, what was decided by it, and another one for a sandbox."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from microsandbox import Sandbox, _create
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory
from microsandbox._explain import explain as explained
from microsandbox._forward import Writer
from microsandbox.audit import AuditRecord, read_audit
from microsandbox.errors import ConfigError
from microsandbox.network import NetworkPolicy
from microsandbox_core import env as environment

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import print_json
from microsandbox_cli.logs import _moment
from microsandbox_cli.network import ExplainOptions, PolicyOptions, explained_network, policy_of
from microsandbox_cli.text import printable


def explain(words: Sequence[str], *, protocol: str, as_json: bool, options: ExplainOptions) -> None:
    """Print the verdict, the rule and, if the flow goes through one, the proxy for the target: the last of
    one or two words; before it a sandbox."""
    *names, target = words
    if len(names) > 1:
        raise ConfigError(
            f"explain: {words[1]!r:.80} is one word too many", hint="msb net explain [NAME] HOST:PORT"
        )
    if names and options:
        raise ConfigError(
            f"explain: a sandbox ({names[0]}) and options of a policy exclude each other",
            hint="leave out the name, or the options",
        )
    if names:
        home = environment.home()
        record = _create.find(home, names[0])
        network = SandboxConfig.unpack(record.config).network
        verdict, proxy = explained(network, target, protocol=protocol, identifier=record.id)
    else:
        verdict, proxy = explained(explained_network(options), target, protocol=protocol)
    if as_json:
        told = {"target": target, "protocol": protocol, "action": verdict.action.value, "rule": verdict.rule}
        print_json(told | {"proxy": proxy})
    else:
        way = "" if proxy is None else f", through {proxy}"
        rule = printable(verdict.rule)
        sys.stdout.write(f"{verdict.action} {printable(target)} {protocol}: {rule}{way}\n")


def audit(
    name: str, *, follow: bool, denied: bool, tail: int | None, since: str | None, as_json: bool
) -> None:
    """Print the records that are wanted, each on a line; the exit code is 0 whether or not there are any."""
    begin = None if since is None else _moment(since, "--since")
    home = environment.home()

    async def main() -> int:
        found = await asyncio.to_thread(_create.find, home, name)
        directory = SandboxDirectory(home, found.id)
        records = read_audit(directory, found.name, denied=denied, tail=tail, since=begin, follow=follow)
        writer = Writer(1)
        async with aclosing(records):
            async for record in records:
                if record.lost and not as_json:
                    report.note(
                        f"note: {record.lost} decisions before this one are missing: there were too many"
                    )
                if not await writer.write(
                    (json.dumps(plain(record)) if as_json else line(record)).encode() + b"\n"
                ):
                    break
        writer.check("stdout")
        return 0

    run_in_loop(main)


def plain(record: AuditRecord) -> dict[str, Any]:
    """A record as JSON has it."""
    return record._asdict() | {"time": _time(record)}


def line(record: AuditRecord) -> str:
    """A record as a person reads it. Names are the guest's words: control characters are escaped."""
    host = f"[{record.address}]" if ":" in record.address else record.address
    place = host if record.port is None else f"{host}:{record.port}"
    name = "" if record.name is None else f" {printable(record.name)}"
    return (
        f"{_time(record)} {record.action} {record.direction} {record.protocol} {place}{name}: "
        f"{printable(record.rule)}"
    )


def _time(record: AuditRecord) -> str:
    return record.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def update(name: str, options: PolicyOptions) -> None:
    """Give a sandbox another policy."""
    if not options:
        raise ConfigError(
            f"update: no policy is given for {name!r}", hint=f"msb net update {name} --network-policy none"
        )
    policy = policy_of(options)

    async def main() -> int:
        await _update(name, policy)
        return 0

    run_in_loop(main)


async def _update(name: str, policy: NetworkPolicy) -> None:
    handle = await Sandbox.get(name)
    await handle.update_network(policy)
    if not handle.status.active:
        report.note(f"note: the sandbox {handle.name!r} is not running; it counts from its next start on")
