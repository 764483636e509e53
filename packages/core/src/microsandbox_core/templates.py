"""The cache of VM templates: machines that were booted once and are started by mapping their memory.

A template is a directory `cache/templates/<key>/` with three files: `memory` (the guest's RAM, sparse,
as long as the machine has memory), `state` (the VMM's device state) and `record`. One that has an image's
root mounted has `upper` too, the disk as it was when the machine was saved, of which every sandbox gets
a copy. Its key is the SHA-256 of everything that must be the same when it is started again; see
`Qemu.template_key`.

Nothing in the big files can be checked in a few milliseconds by reading them, so they are trusted
only in the condition in which their maker left them: `record` holds device, inode, size and both times of
each (the change time cannot be set by a program) and the host's boot id. A template that was written to,
truncated, copied from elsewhere or made before the host's last boot is removed and made again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from microsandbox_core.artifacts import identity, prepare, remove, temporary_for
from microsandbox_core.errors import StorageError

LIMIT = 16
"""Templates that are kept; beyond it the least recently used ones go. Each takes 60 MB and more."""

_VERSION = "2"

_RETRY = 3600.0
"""Seconds for which a template that could not be made is not tried again."""


class Template(NamedTuple):
    """A verified template, its files open: they stay readable when the template is removed."""

    key: str
    memory: int
    state: int
    upper: int | None = None

    def close(self) -> None:
        """Close its descriptors."""
        for descriptor in (self.memory, self.state, self.upper):
            if descriptor is not None:
                os.close(descriptor)


class TemplateInfo(NamedTuple):
    """A template in the cache. `size`: bytes allocated on the host's disk; `used`: seconds since the
    epoch at its last start; `current`: whether a start can use it with what is installed now; `image`: the
    disk of the image that it has mounted."""

    key: str
    path: Path
    size: int
    used: float
    vcpus: int
    memory_mib: int
    current: bool
    image: Path | None


class Templates:
    """The templates of one home."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "cache" / "templates"

    def find(self, key: str) -> Template | None:
        """The template, verified and open; None if there is none. What cannot be trusted is removed.

        Raises `StorageError` when it cannot be looked at, as with too many open files.
        """
        path = self.directory / key
        try:
            template = _open(path)
        except OSError:
            try:
                # Another process may have published it between this and that.
                template = _open(path)
            except FileNotFoundError:
                if path.exists():
                    self.remove(key)
                return None
            except OSError as error:
                raise StorageError.from_os("open", path, error) from error
        record = _read_record(path)
        # The descriptors are looked at and not the names: what was checked is what will be mapped.
        if record.get("files") != _files(template):
            template.close()
            self.remove(key)
            return None
        for used in (key, record.get("base")):
            try:
                if used:
                    os.utime(self.directory / used)
            except OSError:
                pass  # read-only: then nothing is removed there either; or the base is gone
        return template

    def temporary(self, key: str) -> Path:
        """A new directory in which a template can be made; swept later if its maker dies."""
        path = temporary_for(self.directory / key)
        prepare(self.directory)
        try:
            path.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError.from_os("create", path, error) from error
        return path

    def publish(
        self,
        key: str,
        made: Path,
        *,
        basis: str,
        vcpus: int,
        memory_mib: int,
        base: str = "",
        image: Path | None = None,
    ) -> None:
        """Make the finished files in `made` the template of this key.

        `basis` names what is installed, to tell later whether it still is; `base` is the key of the
        template from which this one was made. Raises `StorageError`.
        """
        path = self.directory / key
        try:
            template = _open(made)
            try:
                files = _files(template)
            finally:
                template.close()
            record = {
                "version": _VERSION,
                "files": files,
                "basis": basis,
                "vcpus": vcpus,
                "memory_mib": memory_mib,
                "base": base,
                # In hexadecimal digits: a path may have any byte in it.
                "image": os.fsencode(image).hex() if image else "",
            }
            (made / "record").write_text("".join(f"{name} {value}\n" for name, value in record.items()))
            if path.exists():
                remove(path)
            made.rename(path)
        except OSError as error:
            raise StorageError.from_os("write", path, error) from error
        for old in self.list()[:-LIMIT]:
            self.remove(old.key)

    def list(self, basis: str | None = None) -> list[TemplateInfo]:
        """Every template, least recently used first; `basis` is that of the present installation."""
        found = []
        for path in _directories(self.directory):
            record = _read_record(path)
            try:
                size = sum(file.stat().st_blocks * 512 for file in path.iterdir())
                used = path.stat().st_mtime
                intact = record.get("files") == _named_files(path)
                image = _path(record.get("image"))
            except (OSError, ValueError):
                if not path.exists():
                    continue  # removed in the meantime
                size, used, intact, image = 0, 0.0, False, None
            fits = basis is not None and record.get("basis") == basis
            current = intact and fits and (image is None or image.exists())
            found.append(
                TemplateInfo(
                    path.name, path, size, used, _number(record.get("vcpus")),
                    _number(record.get("memory_mib")), current, image,
                )
            )  # fmt: skip
        return sorted(found, key=lambda info: info.used)

    def remove(self, key: str) -> None:
        """Delete a template; machines started from it run on. Raises `StorageError`."""
        path = self.directory / key
        aside = temporary_for(path)
        try:
            # Away at once, so that nobody meets half of it.
            path.rename(aside)
            remove(aside)
        except FileNotFoundError:
            pass  # another process was faster
        except OSError as error:
            raise StorageError.from_os("remove", path, error) from error

    def give_up(self, key: str) -> None:
        """Remember that this template could not be made."""
        try:
            self._failure(key).touch(mode=0o600)
        except OSError:
            pass  # then it is tried again

    def given_up(self, key: str) -> bool:
        """Whether it could not be made within the last hour, and need not be tried at every start."""
        try:
            age = time.time() - self._failure(key).stat().st_mtime
        except OSError:
            return False
        if 0 <= age < _RETRY:
            return True
        self._failure(key).unlink(missing_ok=True)
        return False

    def _failure(self, key: str) -> Path:
        return self.directory / f".{key}.failed"

    @contextmanager
    def making(self, key: str, *, wait: float) -> Iterator[bool]:
        """Hold the right to make this template, or False if another process has kept it for `wait`
        seconds (0: has it). For the main thread: waiting ends by SIGALRM. Raises `StorageError`."""
        lock = self.directory / f".{key}.lock"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = _locked(lock, wait)
        except OSError as error:
            raise StorageError.from_os("open", lock, error) from error
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                # Still ours: who waits for it looks whether the name is still there.
                lock.unlink(missing_ok=True)
                os.close(descriptor)


def basis_of(kernel: str, boot_disk: str, vmm: Path) -> str:
    """What of this installation a template depends on: two digests and the VMM's file."""
    return f"{kernel} {boot_disk} {identity(vmm)}"


def _locked(lock: Path, wait: float) -> int | None:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _flock_within(descriptor, wait):
            os.close(descriptor)
            return None
        try:
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder removed it when it was done


def _flock_within(descriptor: int, seconds: float) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if seconds <= 0:
            return False

    def over(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, over)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _open(path: Path) -> Template:
    """The files of a template, not verified. Raises `OSError`."""
    found: list[int] = []
    try:
        for name in ("memory", "state", "upper"):
            try:
                found.append(os.open(path / name, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                if name != "upper":
                    raise
    except BaseException:
        for descriptor in found:
            os.close(descriptor)
        raise
    return Template(path.name, *found)


def _files(template: Template) -> str:
    """What the record says of the files that it was made with."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    descriptors = (template.memory, template.state, template.upper)
    return " ".join([*(_identity(os.fstat(each)) for each in descriptors if each is not None), boot])


def _named_files(path: Path) -> str:
    template = _open(path)
    try:
        return _files(template)
    finally:
        template.close()


def _identity(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _read_record(path: Path) -> dict[str, str]:
    """The record's lines by their first word; empty when there is none, or one of another version."""
    try:
        text = (path / "record").read_text()
    except (OSError, UnicodeDecodeError):
        return {}
    lines = dict(line.partition(" ")[::2] for line in text.splitlines())
    return lines if lines.get("version") == _VERSION else {}


def _directories(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError:
        return []


def _path(digits: str | None) -> Path | None:
    """The path whose bytes these are; ValueError if they are not hexadecimal digits."""
    return Path(os.fsdecode(bytes.fromhex(digits))) if digits else None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
