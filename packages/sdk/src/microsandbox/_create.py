"""From "this image, these settings" to a supervisor that is starting: the synchronous half of create."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from microsandbox_core import env

from microsandbox import _life
from microsandbox._config import SandboxConfig
from microsandbox._directory import SandboxDirectory, sweep
from microsandbox._launch import Launch, Supervisor, launch
from microsandbox._state import Record, State
from microsandbox.errors import ConfigError, PullFailed, SandboxNotFound, StateError, StillRunning, translated

if TYPE_CHECKING:
    from microsandbox_oci import Abort, Image, ImageStore, Platform, Reference
    from microsandbox_oci import Progress as LoadProgress

    from microsandbox.patch import Patch


_END_TIME = 5.0  # seconds for a supervisor that is not wanted any more

HANDOVER_PAUSE = 0.01
"""Seconds until who meets a lock that is changing hands looks again: nobody announces when that is done."""


class Held(NamedTuple):
    """A stopped sandbox whose lock is ours: nobody else starts or removes it."""

    record: Record
    lock: int


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


def image_store(
    home: Path, platform: Platform | None = None, *, compression: str | None = None
) -> ImageStore:
    """The image store under `home`; of `platform`, this machine's by default. `compression`: of what comes
    from now on, by default that of the environment. Raises `ConfigError`."""
    from microsandbox_oci import ImageStore

    if compression is None:
        compression = env.value(env.MSB_IMAGE_COMPRESSION) or "none"
    try:
        return ImageStore(
            home / "cache", limits=home / "limits.toml", platform=platform, compression=compression
        )
    except ValueError as error:
        raise ConfigError(f"{env.MSB_IMAGE_COMPRESSION}: {error}", hint="set it to none or lz4") from error


def resolve_image(
    home: Path,
    image: str,
    *,
    pull: str = "if-missing",
    credentials: tuple[str, str] | None = None,
    insecure: bool = False,
    progress: Callable[[LoadProgress], None] | None = None,
    abort: Abort | None = None,
) -> Image:
    """The image that an argument such as ``busybox``, ``./rootfs`` or ``oci:dir`` means.

    References are pulled as `pull` says: a value of `registries.PullPolicy`; `credentials` (user name and
    password) and `insecure` are for their registry. Archives and layouts are loaded, directories packed;
    both are quick when nothing has changed. `abort` ends a pull. Raises `ImageError` or `StateError`.
    """
    with translated():
        # Bound here, so that the errors of this package can be told from others'.
        from microsandbox_oci import Reference, RootfsDirectory, classify_image_argument

        store = image_store(home)
        if image.startswith("sha256:"):
            return store.get(image)
        argument = classify_image_argument(image)
        if isinstance(argument, Reference):
            return _named_image(home, store, argument, pull, credentials, insecure, progress, abort)
        if isinstance(argument, RootfsDirectory):
            return store.pack_rootfs(argument.path, progress=progress)
        return store.load(argument, progress=progress)[0]


def _named_image(
    home: Path,
    store: ImageStore,
    reference: Reference,
    pull: str,
    credentials: tuple[str, str] | None,
    insecure: bool,
    progress: Callable[[LoadProgress], None] | None,
    abort: Abort | None,
) -> Image:
    from microsandbox_oci import ImageNotFound

    missing = False
    if pull != "always":
        try:
            return store.get(reference)
        except ImageNotFound:
            if pull == "never":
                raise
            missing = True
    # Here, because a start of an image that is there must not wait for these imports.
    from microsandbox import registries

    try:
        return registries.pull(
            home,
            str(reference),
            credentials=None if credentials is None else registries.Credentials(*credentials),
            insecure=insecure,
            progress=progress,
            abort=abort,
        )
    except PullFailed as error:
        if not missing:
            raise
        raise PullFailed(
            f"image {reference.familiar!r} is not in the store, and {error}", hint=error.hint, code=error.code
        ) from error


def begin(
    home: Path,
    image: Image,
    config: SandboxConfig,
    *,
    shown_image: str,
    name: str | None = None,
    attached: bool = True,
    ephemeral: bool = False,
    labels: tuple[tuple[str, str], ...] = (),
    patches: Sequence[Patch] = (),
    instead_of: Held | None = None,
) -> Pending:
    """Record a new sandbox and start its supervisor. `instead_of`: the one that has the name until then; it
    is removed when the new one is recorded, and its lock closed in any case.

    Raises `AlreadyExists`, `ConfigError` (of patches), `StateError`, `ImageError`, `StartError`; nothing is
    left behind then.
    """
    if instead_of is None:
        return _begin(home, image, config, shown_image, name, attached, ephemeral, labels, patches, None)
    replaced = instead_of.record.id
    try:
        return _begin(home, image, config, shown_image, name, attached, ephemeral, labels, patches, replaced)
    finally:
        _remove_replaced(home, replaced)
        os.close(instead_of.lock)


def _remove_replaced(home: Path, identifier: str) -> None:
    """Remove the directory of a sandbox if its record has gone; otherwise it is as it was."""
    state = State(home)
    try:
        if state.find_id(identifier) is None:
            SandboxDirectory(home, identifier).remove()
    except StateError:
        pass  # it belongs to nothing: the next command removes it
    finally:
        state.close()


def _begin(
    home: Path,
    image: Image,
    config: SandboxConfig,
    shown_image: str,
    name: str | None,
    attached: bool,
    ephemeral: bool,
    labels: tuple[tuple[str, str], ...],
    patches: Sequence[Patch],
    instead_of: str | None,
) -> Pending:
    begun = time.monotonic()
    identifier = os.urandom(8).hex()
    config = config._replace(image_compression=image.compression)
    if config.mounts:
        config = _with_mounts(home, config)
    directory = SandboxDirectory(home, identifier)
    lock = directory.create()
    if patches or any(mount.owned for mount in config.mounts):
        _furnish(directory, lock, config, patches)
    state = State(home)
    record = Record(
        identifier, name or _generated_name(identifier), ephemeral, time.time_ns(), shown_image, image.digest,
        config.pack(), labels,
    )  # fmt: skip
    # What ends with this process, and is removed then, can be recorded once it is on its way: whoever is
    # killed before that, a directory without a record goes when its lock is free. A name is taken first.
    unnamed = attached and ephemeral and name is None
    try:
        if not unnamed:
            try:
                state.add(record, instead_of=instead_of)
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


def _furnish(directory: SandboxDirectory, lock: int, config: SandboxConfig, patches: Sequence[Patch]) -> None:
    """Put into a new directory what is to be there at the first start; on failure it goes, and the lock."""
    try:
        if patches:
            from microsandbox.patch import write_spool

            write_spool(directory.patches, patches)
        if any(mount.owned for mount in config.mounts):
            from microsandbox import _owned

            _owned.make(directory.path, config.mounts)
    except BaseException:
        try:
            directory.remove()
        finally:
            os.close(lock)
        raise


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
    record, lock = hold(home, name)
    directory = SandboxDirectory(home, record.id)
    try:
        config = SandboxConfig.unpack(record.config)
        if cold:
            config = config._replace(cold=True)
        image = image_of(home, record)
        if image.compression != config.image_compression:
            _note_compression(home, record.id, image.compression)
        # Of an earlier life, until the supervisor writes: whoever looks must not take it for this one's.
        _life.write(directory, _life.begun(), quiet=True)
    except BaseException:
        os.close(lock)
        raise
    supervisor = _launch(home, record, config, image, directory, lock, attached)
    return Pending(home, record, config, image, directory, supervisor, attached, False, begun)


def _note_compression(home: Path, identifier: str, compression: str) -> None:
    """Record that the image is there in another form only: copies of the sandbox need the one it runs on."""

    def change(record: Record) -> Record:
        config = SandboxConfig.unpack(record.config)
        return record._replace(config=config._replace(image_compression=compression).pack())

    state = State(home)
    try:
        state.change(identifier, change)
    finally:
        state.close()


def hold(home: Path, name: str, *, by_id: bool = False) -> Held:
    """Take the lock of a sandbox that does not run. Raises `SandboxNotFound`, `StillRunning`.

    Who lets go of the lock just now, or removes the sandbox, is waited for.
    """
    state = State(home)
    deadline = time.monotonic() + _END_TIME
    try:
        while True:
            record = state.find_id(name) if by_id else state.find(name)
            if record is None:
                raise not_found(name)
            directory = SandboxDirectory(home, record.id)
            lock = directory.try_lock()
            if lock is not None:
                # Removal begins with the record. Whoever was killed there has left the rest.
                if state.find_id(record.id) is not None and not _is_no_more(home, record.id):
                    return Held(record, lock)
                state.remove(record.id)
                directory.remove()
                os.close(lock)
                continue
            seen = _life.look(directory)
            if seen.held and (seen.life is None or seen.life.goes_on or time.monotonic() > deadline):
                raise StillRunning(
                    f"the sandbox {record.name!r} is {seen.status}",
                    hint=f"msb stop {record.name}, or msb exec {record.name} -- COMMAND",
                )
            if not seen.held and not directory.lock.exists():
                # It lost its directory in another way than by us: what cannot start is no sandbox.
                state.remove(record.id)
                continue
            time.sleep(HANDOVER_PAUSE)
    finally:
        state.close()


def _launch(
    home: Path,
    record: Record,
    config: SandboxConfig,
    image: Image,
    directory: SandboxDirectory,
    lock: int,
    attached: bool,
    *,
    fork_token: bytes = b"",
    fork_basis: str = "",
) -> Supervisor:
    """Start the supervisor; `lock` is passed on or closed in any case. `fork_token`, `fork_basis`: of the
    machine that this one is a copy of (see `_fork`)."""
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
        root_disk=config.root_disk,
        security=config.security,
        network=config.network.pack(),
        mounts=_mounts(home, record.name, config, directory),
        user=(config.user or image.config.user) if config.mounts else None,
        fork_token=fork_token,
        fork_basis=fork_basis,
    )
    told = image.config
    if config.workdir or config.scripts or config.tmpfs or config.stop_signal or config.init or (
        told.working_dir or told.stop_signal
    ):  # fmt: skip
        from microsandbox import _guest

        asked = asked._replace(
            guest=_guest.configure_parameters(config, told), init=_guest.init_parameters(config, told)
        )
    return launch(asked, directory, lock, pin)


def _with_mounts(home: Path, config: SandboxConfig) -> SandboxConfig:
    """The settings with volumes as what they are; one that is named for the first time is made.

    Raises `ConfigError`, `VolumeError`, `StateError`.
    """
    from microsandbox import _disks

    mounts = config.mounts
    if any(mount.volume is not None for mount in mounts):
        from microsandbox import _volumes

        mounts = _volumes.resolve(home, mounts, create_missing=True)
    _disks.check_disks(mounts)
    return config._replace(mounts=mounts)


def _mounts(
    home: Path, name: str, config: SandboxConfig, directory: SandboxDirectory
) -> list[dict[str, Any]]:
    """What is to be mounted, volumes with where they are now. Raises `VolumeError`."""
    mounts = config.mounts
    if any(mount.volume is not None for mount in mounts):
        from microsandbox import _volumes

        mounts = _volumes.resolve(home, mounts)
    if any(mount.owned for mount in mounts):
        from microsandbox import _owned

        mounts = _owned.resolve(directory.path, name, mounts)
    return [mount.to_plain() for mount in mounts]


def find(home: Path, name: str) -> Record:
    """The record of a sandbox by name or id. Raises `SandboxNotFound`."""
    state = State(home)
    try:
        record = state.find(name)
    finally:
        state.close()
    if record is None:
        raise not_found(name)
    return record


def not_found(name: str) -> SandboxNotFound:
    """The error that says so."""
    return SandboxNotFound(f"there is no sandbox named {name!r}", hint="msb ls shows those there are")


def image_of(home: Path, record: Record) -> Image:
    """The image that a sandbox was made from, in the form that it had mounted. Raises `ImageError`."""
    config = SandboxConfig.unpack(record.config)
    with translated():
        return image_store(home).get(record.image_digest, compression=config.image_compression)


def forget_quietly(home: Path, record: Record) -> None:
    """`forget` what may have been removed already, or may still be held; the next command repairs."""
    try:
        forget(home, record)
    except (SandboxNotFound, StillRunning, StateError):
        pass  # whoever holds it removes it, and reconcile() does if that fails


def forget(home: Path, record: Record) -> None:
    """Remove a stopped sandbox: its record and all that it has written.

    Raises `StillRunning`, and `SandboxNotFound` if somebody else was faster.
    """
    held = hold(home, record.id, by_id=True)
    directory = SandboxDirectory(home, record.id)
    state = State(home)
    try:
        life = _life.read(directory)
        if life is None or life.goes_on:
            # Who meets the lock meanwhile must not take what crashed for what runs.
            ended = (life or _life.begun())._replace(status=_life.Status.STOPPED)
            _life.write(directory, ended, quiet=True)
        # The record first: from then on there is no such sandbox, and what is left of it when we are killed
        # is a directory that belongs to nothing.
        try:
            state.remove(record.id)
        except StateError as error:
            if error.code != "no_space":
                raise
            # What is to go makes the room without which nothing can be forgotten. From the first step on
            # there is no way back: should the record stay now, the next command removes it.
            directory.doom()
            directory.remove()
            state.remove(record.id)
        directory.remove()
    finally:
        state.close()
        os.close(held.lock)


def reconcile(home: Path) -> list[tuple[Record, _life.Seen]]:
    """Put right what a crash has left, and return every sandbox with what it is doing.

    Records of ephemeral sandboxes that no longer run go, and directories that belong to nothing. Nothing is
    written, and nobody made to wait, unless there is such a thing.
    """
    state = State(home)
    try:
        records, held = _repair(home, state)
    finally:
        state.close()
    seen = _life.look_at(home, (record.id for record in records), held)
    for identifier, found in seen.items():
        if found.status is _life.Status.CRASHED:
            _release_cgroup(SandboxDirectory(home, identifier))
    return [(record, seen[record.id]) for record in records]


def _release_cgroup(directory: SandboxDirectory) -> None:
    """Remove what a supervisor that was killed has left on the host, unless somebody starts the sandbox."""
    if directory.cgroup is not None and (lock := directory.try_lock()) is not None:
        try:
            directory.release_cgroup()
        finally:
            os.close(lock)


def _repair(home: Path, state: State) -> tuple[list[Record], set[str]]:
    """The records that are left, and the ids of those whose lock is held."""
    # Locks before records: a creator lets go of the lock only when its record is there, so a directory that
    # is not locked and then has no record never will have one.
    directories = _life.directories(home)
    records = state.all()
    held = {identifier for identifier, locked in directories.items() if locked}
    found = []
    for record in records:
        if record.id not in held and (
            record.ephemeral or record.id not in directories or _is_no_more(home, record.id)
        ):
            # It may have come since the locks were looked at.
            if not SandboxDirectory(home, record.id).is_running():
                forget_quietly(home, record)
                continue
            held.add(record.id)
        found.append(record)
    if not {identifier for identifier in directories if identifier not in held} <= {r.id for r in records}:
        sweep(home, lambda identifier: state.find_id(identifier) is not None)
    return found, held


def _is_no_more(home: Path, identifier: str) -> bool:
    """Whether a sandbox was to go on where another one was, and did not come up; or its removal has begun."""
    path = f"{home}/sandboxes/{identifier}"
    return os.path.exists(f"{path}/fork") or os.path.exists(f"{path}/doomed")  # noqa: PTH110 - asked for every


def _repair_quietly(home: Path, state: State) -> None:
    """Put right what others' crashes have left, once our own sandbox is on its way."""
    try:
        _repair(home, state)
    except (StateError, OSError):
        pass  # `msb ls` meets it again and says it
