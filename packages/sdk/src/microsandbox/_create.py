"""From "this image, these settings" to a supervisor that is starting: the synchronous half of create."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from microsandbox_core import env

from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory, sweep
from microsandbox._launch import Launch, Supervisor, launch
from microsandbox._state import Record, State
from microsandbox.errors import SandboxNotFound, StateError, StillRunning, translated

if TYPE_CHECKING:
    from microsandbox_oci import Image, ImageStore
    from microsandbox_oci import Progress as LoadProgress


_END_TIME = 5.0  # seconds for a supervisor that is not wanted any more


class Pending(NamedTuple):
    """A sandbox whose supervisor has been started; whether the VM comes up is not known yet."""

    home: Path
    record: Record
    config: SandboxConfig
    image: Image
    directory: SandboxDirectory
    supervisor: Supervisor
    attached: bool
    fresh: bool
    """Whether the sandbox was created by this, so that it goes if it does not come up."""
    begun: float
    """`time.monotonic()` when it began."""


def image_store(home: Path) -> ImageStore:
    """The image store under `home`."""
    from microsandbox_oci import ImageStore

    return ImageStore(home / "cache")


def resolve_image(home: Path, image: str, *, progress: Callable[[LoadProgress], None] | None = None) -> Image:
    """The image that an argument such as ``busybox``, ``./rootfs`` or ``oci:dir`` means.

    Archives and layouts are loaded, directories packed; both are quick when nothing has changed.
    Raises `ImageError` or `StateError`.
    """
    with translated():
        # Bound here, so that the errors of this package can be told from others'.
        from microsandbox_oci import Reference, RootfsDirectory, classify_image_argument

        argument = classify_image_argument(image)
        store = image_store(home)
        if isinstance(argument, Reference):
            return store.get(argument)
        if isinstance(argument, RootfsDirectory):
            return store.pack_rootfs(argument.path, progress=progress)
        return store.load(argument, progress=progress)[0]


def begin(
    home: Path,
    image: Image,
    config: SandboxConfig,
    *,
    shown_image: str,
    name: str | None = None,
    attached: bool = True,
    ephemeral: bool = False,
) -> Pending:
    """Record a new sandbox and start its supervisor.

    Raises `AlreadyExists`, `StateError`, `ImageError`, `StartError`; nothing is left behind then.
    """
    begun = time.monotonic()
    identifier = os.urandom(8).hex()
    directory = SandboxDirectory(home, identifier)
    lock = directory.create()
    state = State(home)
    record = Record(
        identifier, name or _generated_name(identifier), ephemeral, time.time_ns(), shown_image, image.digest,
        config.pack(),
    )  # fmt: skip
    # What ends with this process, and is removed then, can be recorded once it is on its way: whoever is
    # killed before that, a directory without a record goes when its lock is free. A name is taken first.
    unnamed = attached and ephemeral and name is None
    try:
        if not unnamed:
            try:
                state.add(record)
            except BaseException:
                try:
                    directory.remove()
                finally:
                    os.close(lock)
                raise
        try:
            supervisor = _launch(home, record, config, image, directory, lock, attached)
        except BaseException:
            # The directory first: a database that cannot be written now must not keep it.
            directory.remove()
            if not unnamed:
                state.remove(identifier)
            raise
        if unnamed:
            try:
                state.add(record)
            except BaseException:
                _take_back(supervisor)
                raise
        _repair_quietly(home, state)
    finally:
        state.close()
    return Pending(home, record, config, image, directory, supervisor, attached, True, begun)


def _generated_name(identifier: str) -> str:
    return f"msb-{identifier[:8]}"


def is_logged(record: Record) -> bool:
    """Whether a log is kept. An unnamed ephemeral sandbox takes its directory along when it ends: nobody
    would come to read a log in it."""
    return not (record.ephemeral and record.name == _generated_name(record.id))


def _take_back(supervisor: Supervisor) -> None:
    """End a supervisor that has just been started, and remove what it could not."""
    from microsandbox import _attach

    supervisor.close()
    _attach.terminate(supervisor.pidfd)
    if not _attach.wait_gone(supervisor.pidfd, _END_TIME):
        _attach.terminate(supervisor.pidfd, signal.SIGKILL)
    supervisor.reap()
    supervisor.directory.remove()


def begin_again(home: Path, name: str, *, attached: bool = False, cold: bool = False) -> Pending:
    """Start the supervisor of a sandbox that exists and is stopped; `cold` is for this start only.

    Raises `SandboxNotFound`, `StillRunning`, and what `begin` raises.
    """
    begun = time.monotonic()
    record = find(home, name)
    config = SandboxConfig.unpack(record.config)
    if cold:
        config = config._replace(cold=True)
    directory = SandboxDirectory(home, record.id)
    image = image_of(home, record)
    lock = directory.try_lock()
    if lock is None:
        raise StillRunning(
            f"the sandbox {record.name!r} is running", hint=f"msb exec {record.name} -- COMMAND"
        )
    supervisor = _launch(home, record, config, image, directory, lock, attached)
    return Pending(home, record, config, image, directory, supervisor, attached, False, begun)


def _launch(
    home: Path,
    record: Record,
    config: SandboxConfig,
    image: Image,
    directory: SandboxDirectory,
    lock: int,
    attached: bool,
) -> Supervisor:
    """Start the supervisor; `lock` is passed on or closed in any case."""
    try:
        with translated():
            from microsandbox_oci import open_in_use_lock

            pin = open_in_use_lock(image)
    except BaseException:
        os.close(lock)
        raise
    asked = Launch(
        home=str(home),
        directory=str(directory.path),
        identifier=record.id,
        name=record.name,
        hostname=config.hostname or record.name.replace("_", "-").replace(".", "-").strip("-")[:63],
        image_disk=str(image.disk),
        cpus=config.cpus,
        memory_mib=config.memory_mib,
        attached=attached,
        ephemeral=record.ephemeral,
        vmm=config.vmm,
        require_kvm=config.require_kvm,
        cold=config.cold or (env.value(env.MSB_COLD) or "0") != "0",
        logged=is_logged(record),
        max_duration=config.max_duration,
        idle_timeout=config.idle_timeout,
    )
    return launch(asked, directory, lock, pin)


def find(home: Path, name: str) -> Record:
    """The record of a sandbox by name or id. Raises `SandboxNotFound`."""
    state = State(home)
    try:
        record = state.find(name)
    finally:
        state.close()
    if record is None:
        raise SandboxNotFound(f"there is no sandbox named {name!r}", hint="msb ls shows those there are")
    return record


def image_of(home: Path, record: Record) -> Image:
    """The image that a sandbox was made from. Raises `ImageError`."""
    with translated():
        return image_store(home).get(record.image_digest)


def forget_quietly(home: Path, record: Record) -> None:
    """`forget` what may have been removed already, or may still be held; the next command repairs."""
    try:
        forget(home, record)
    except (StillRunning, StateError):
        pass  # whoever holds it removes it, and reconcile() does if that fails


def forget(home: Path, record: Record) -> None:
    """Remove a stopped sandbox: its record and all that it has written. Raises `StillRunning`."""
    directory = SandboxDirectory(home, record.id)
    lock = directory.try_lock()
    if lock is None and directory.is_running():
        raise StillRunning(
            f"the sandbox {record.name!r} is running", hint=f"msb stop {record.name}, or msb rm --force"
        )
    state = State(home)
    try:
        directory.remove()
        state.remove(record.id)
    finally:
        state.close()
        if lock is not None:
            os.close(lock)


def reconcile(home: Path) -> list[tuple[Record, bool]]:
    """Put right what a crash has left, and return every sandbox with whether it runs.

    Records of ephemeral sandboxes that no longer run go, and directories that belong to nothing.
    """
    state = State(home)
    try:
        return _repair(home, state)
    finally:
        state.close()


def _repair(home: Path, state: State) -> list[tuple[Record, bool]]:
    found = []
    for record in state.all():
        directory = SandboxDirectory(home, record.id)
        running = directory.is_running()
        if record.ephemeral and not running:
            directory.remove()
            state.remove(record.id)
            continue
        found.append((record, running))
    sweep(home, lambda identifier: state.find(identifier) is not None)
    return found


def _repair_quietly(home: Path, state: State) -> None:
    """Put right what others' crashes have left, once our own sandbox is on its way."""
    try:
        _repair(home, state)
    except (StateError, OSError):
        pass  # `msb ls` meets it again and says it
