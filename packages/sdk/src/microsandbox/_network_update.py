"""Another policy for a sandbox: for the network that it has, and in its record."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox import _create, _fork, _life
from microsandbox._config import NetworkConfig, SandboxConfig
from microsandbox._directory import SandboxDirectory, state_error
from microsandbox._state import Record, State
from microsandbox.network import policy_of

if TYPE_CHECKING:
    from microsandbox.network import NetworkPolicy


async def update(home: Path, record: Record, policy: NetworkPolicy | str) -> Record:
    """Set it; the record as it is then. See `Sandbox.update_network` for what it raises."""
    wanted = policy_of(policy)
    directory = SandboxDirectory(home, record.id)
    turn = await asyncio.to_thread(_turn, directory, record.name)
    try:
        found = await asyncio.to_thread(_create.find, home, record.id)
        network = wanted.applied_to(SandboxConfig.unpack(found.config).network)
        # A running one is told first, so that nothing is on record that it was not held to.
        told = await _tell(directory, found.name, network)
        stored = await asyncio.to_thread(_store, home, found, network)
        if not told:
            await _tell(directory, found.name, network)  # it may have been started with the former record
        return stored
    finally:
        os.close(turn)


async def _tell(directory: SandboxDirectory, name: str, network: NetworkConfig) -> bool:
    """Tell the supervisor. False if there is none."""
    seen = await asyncio.to_thread(_life.look, directory)
    if seen.status.active:
        doing = "change its network"
        await _fork.ask(directory, name, "network.update", doing=doing, network=network.pack())
    return seen.status.active


def _turn(directory: SandboxDirectory, name: str) -> int:
    """Wait for who is updating it now, so that record and network do not end up with two policies. A lock, to
    be closed."""
    try:
        descriptor = os.open(directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _create.not_found(name) from None
    except OSError as error:
        raise state_error("open", directory.path, error) from error
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _store(home: Path, record: Record, network: NetworkConfig) -> Record:
    def change(found: Record) -> Record:
        config = SandboxConfig.unpack(found.config)
        return found._replace(config=config._replace(network=network).pack())

    state = State(home)
    try:
        stored = state.change(record.id, change)
    finally:
        state.close()
    if stored is None:
        raise _create.not_found(record.name)
    return stored
