"""Who a user is to a registry, and where that is kept.

Looked at in this order: the credentials of ``msb registry login`` (`CredentialFile`, which may point to the
operating system's keyring), then those of other tools: ``$REGISTRY_AUTH_FILE``,
``$XDG_RUNTIME_DIR/containers/auth.json``, ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json`` with
its ``credHelpers`` and ``credsStore``.

Formats: ``config.json`` of the Docker command line; ``containers-auth.json(5)``; the protocol of
``docker-credential-helpers``.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from microsandbox_oci._errors import CredentialError, ImageInvalid
from microsandbox_oci._files import PRIVATE_FILE, make_directory, publish
from microsandbox_oci._json import Node, dump
from microsandbox_oci._locks import locked
from microsandbox_oci._reference import DEFAULT_DOMAIN, LEGACY_DEFAULT_DOMAIN

_SERVICE = "microsandbox"
_LEGACY_KEY = f"https://{LEGACY_DEFAULT_DOMAIN}/v1/"
_MAX_SIZE = 1 << 20
_HELPER_SECONDS = 30
_HELPER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NOT_FOUND = "credentials not found in native keychain"
# A helper says with this user name that the secret is an identity token.
_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password, or an identity token (an OAuth 2 refresh token). Never printed."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header: RFC 7617."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class CredentialSource(Protocol):
    """Anything that knows credentials."""

    def get(self, domain: str) -> Credentials | None:
        """Return the credentials for a registry's domain, None if there are none.

        Raises:
            CredentialError: there are some, but they cannot be read.
        """
        ...


class Anonymous:
    """No credentials for anyone."""

    def get(self, domain: str) -> Credentials | None:
        """Return None."""
        return None


class Fixed:
    """One registry's credentials, given by the caller."""

    def __init__(self, domain: str, credentials: Credentials) -> None:
        self._domain = domain
        self._credentials = credentials

    def get(self, domain: str) -> Credentials | None:
        """Return them for their domain only."""
        return self._credentials if domain == self._domain else None


class Chain:
    """Several sources; the first that has an answer counts."""

    def __init__(self, *sources: CredentialSource) -> None:
        self._sources = sources

    def get(self, domain: str) -> Credentials | None:
        """Return the first answer."""
        for source in self._sources:
            found = source.get(domain)
            if found is not None:
                return found
        return None


class DockerConfig:
    """A ``config.json`` or ``auth.json`` of Docker, Podman, Skopeo and their like. Never written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def usual(cls, environ: Mapping[str, str] = os.environ) -> Chain:
        """Return those that the environment and the home directory lead to."""
        paths = []
        if explicit := environ.get("REGISTRY_AUTH_FILE"):
            paths.append(Path(explicit))
        if runtime := environ.get("XDG_RUNTIME_DIR"):
            paths.append(Path(runtime, "containers", "auth.json"))
        if docker := environ.get("DOCKER_CONFIG"):
            paths.append(Path(docker, "config.json"))
        elif home := environ.get("HOME"):
            paths.append(Path(home, ".docker", "config.json"))
        return Chain(*(cls(path) for path in paths))

    def get(self, domain: str) -> Credentials | None:
        """Return what the file, or the helper it names, has for ``domain``."""
        document = _read(self._path)
        if document is None:
            return None
        with _explained(self._path):
            helpers = document.text_map("credHelpers")
            store = document.text("credsStore")
            entries = document.child("auths")
        for key in _keys(domain):
            helper = helpers.get(key) or store
            if helper and (found := _ask_helper(helper, key)) is not None:
                return found
            with _explained(self._path):
                entry = None if entries is None else entries.child(key)
                found = None if entry is None else _from_entry(entry, self._path, key)
            if found is not None:
                return found
        return None


class CredentialFile:
    """The credentials this product keeps: in the OS keyring where there is one, else in a 0600 file.

    The file lists every domain that was logged in to; a keyring could not be asked for that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, domain: str) -> Credentials | None:
        """Return what was kept for ``domain``."""
        document = _read(self._path)
        if document is None:
            return None
        with _explained(self._path):
            entries = document.child("auths")
            entry = None if entries is None else entries.child(domain)
            if entry is None:
                return None
            username, where = entry.text("username"), entry.text("store")
            if where != "keyring":
                return _from_entry(entry, self._path, domain)
        keyring = _keyring()
        secret = None if keyring is None else keyring.get_password(_SERVICE, f"{domain}\n{username}")
        if secret is None:
            raise CredentialError(
                f"the keyring has no password for {username or 'the token'} at {domain}",
                hint=f"log in again: msb registry login {domain}",
            )
        return _credentials(username, secret)

    def domains(self) -> dict[str, str]:
        """Return the user name of every registry that was logged in to, by domain."""
        document = _read(self._path)
        if document is None:
            return {}
        with _explained(self._path):
            entries = document.child("auths")
            names = () if entries is None else tuple(entries.members)
            return {
                name: "" if (entry := entries.child(name)) is None else entry.text("username")
                for name in names
                if entries is not None
            }

    def put(self, domain: str, credentials: Credentials) -> str:
        """Keep credentials and return where: ``keyring``, or the path of the file.

        Raises:
            CredentialError: neither can be written.
        """
        username = credentials.username or _TOKEN_USER
        entry: dict[str, str] = {"username": username}
        keyring = _keyring()
        secret = credentials.identity_token or credentials.password
        if keyring is not None and keyring.set_password(_SERVICE, f"{domain}\n{username}", secret):
            entry["store"] = "keyring"
        else:
            entry["auth"] = base64.b64encode(f"{username}:{secret}".encode()).decode()
        self._change(domain, entry)
        return "keyring" if "store" in entry else str(self._path)

    def remove(self, domain: str) -> bool:
        """Forget a registry's credentials; say whether there were any."""
        username = self.domains().get(domain)
        if username is None:
            return False
        self._change(domain, None)
        keyring = _keyring()
        if keyring is not None:
            keyring.delete_password(_SERVICE, f"{domain}\n{username}")
        return True

    def _change(self, domain: str, entry: dict[str, str] | None) -> None:
        try:
            make_directory(self._path.parent)
            with locked(self._path.with_name(self._path.name + ".lock")):
                document = _read(self._path)
                entries: dict[str, object] = {}
                if document is not None:
                    with _explained(self._path):
                        before = document.child("auths")
                        entries = {} if before is None else dict(before.members)
                entries.pop(domain, None)
                if entry is not None:
                    entries[domain] = entry
                self._write(dump({"auths": entries}))
        except OSError as error:
            raise CredentialError(f"cannot write {self._path}: {error.strerror or error}") from error

    def _write(self, data: bytes) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE
        )
        try:
            try:
                os.fchmod(fd, PRIVATE_FILE)
                view = memoryview(data)
                while view:  # a disk that is nearly full takes a part, and only then says so
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            publish(temporary, self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class _Keyring:
    """The part of ``keyring`` that is used, with its many errors taken as "it does not have it"."""

    def __init__(self) -> None:
        import keyring
        from keyring.backends import fail, null

        backend = keyring.get_keyring()
        if isinstance(backend, fail.Keyring | null.Keyring):
            raise ImportError("no keyring is usable")
        self._keyring = backend

    def get_password(self, service: str, user: str) -> str | None:
        from keyring.errors import KeyringError

        try:
            found: str | None = self._keyring.get_password(service, user)
        except KeyringError:
            return None
        return found

    def set_password(self, service: str, user: str, secret: str) -> bool:
        from keyring.errors import KeyringError

        try:
            self._keyring.set_password(service, user, secret)
        except KeyringError:
            return False
        return True

    def delete_password(self, service: str, user: str) -> None:
        from keyring.errors import KeyringError

        try:
            self._keyring.delete_password(service, user)
        except KeyringError:
            return


def _keyring() -> _Keyring | None:
    """Return the keyring if the package is installed and finds a usable one."""
    try:
        return _Keyring()
    except ImportError:
        return None


def _keys(domain: str) -> tuple[str, ...]:
    """The names under which a domain may appear; Docker Hub has an old one."""
    if domain in (DEFAULT_DOMAIN, LEGACY_DEFAULT_DOMAIN):
        return (_LEGACY_KEY, DEFAULT_DOMAIN, LEGACY_DEFAULT_DOMAIN)
    return (domain, f"https://{domain}", f"https://{domain}/v2/", f"http://{domain}")


def _read(path: Path) -> Node | None:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_SIZE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CredentialError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _MAX_SIZE:
        raise CredentialError(f"{path} is larger than {_MAX_SIZE} bytes")
    if not data.strip():
        return None
    with _explained(path):
        return Node.parse(data, str(path))


class _explained:  # noqa: N801 - a context manager
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImageInvalid):
            raise CredentialError(
                f"{self._path} is not a file of credentials: {error}", hint="repair or remove it"
            ) from error


def _from_entry(entry: Node, path: Path, key: str) -> Credentials | None:
    token = entry.text("identitytoken")
    if token:
        return Credentials(identity_token=token)
    text = entry.text("auth")
    if not text:
        username = entry.text("username")
        return Credentials(username, entry.text("password")) if username else None
    try:
        username, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = username = password = ""
    if not colon:
        raise CredentialError(f"{path}: the entry of {key} is not base64 of user:password")
    return _credentials(username, password.rstrip("\0"))


def _credentials(username: str, secret: str) -> Credentials:
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)


def _ask_helper(name: str, key: str) -> Credentials | None:
    if not _HELPER_NAME.fullmatch(name):
        raise CredentialError(f"{name[:80]!r} is not the name of a credential helper")
    import subprocess  # most people have no helper

    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"], input=key, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise CredentialError(
            f"the credential helper {program} is not installed", hint="install it, or log in with msb"
        ) from None
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise CredentialError(f"the credential helper {program} failed: {error}") from error
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        if _NOT_FOUND in said.lower():
            return None
        raise CredentialError(f"the credential helper {program} failed: {said[:200]!r}")
    try:
        answer = Node.parse(done.stdout.encode(), program)
        return _credentials(answer.text("Username"), answer.text("Secret"))
    except ImageInvalid as error:
        raise CredentialError(f"the credential helper {program} answered nonsense") from error
