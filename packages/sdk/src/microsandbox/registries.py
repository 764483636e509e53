"""Registries: pulling images from them, and who the user is to them.

``<home>/registries.toml`` says how they are reached (`microsandbox_oci.Registries`), and
``<home>/registry-logins.json`` who logged in (`microsandbox_oci.CredentialFile`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microsandbox_oci import (
    Abort,
    Chain,
    CredentialFile,
    Credentials,
    DockerConfig,
    Fixed,
    Image,
    ImageNotFound,
    Platform,
    Progress,
    Reference,
    Registries,
    RegistryClient,
    RegistryOptions,
)

from microsandbox._create import image_store
from microsandbox._policy import PullPolicy
from microsandbox.errors import ConfigError, translated

if TYPE_CHECKING:
    from microsandbox_oci import CredentialSource

__all__ = [
    "Abort",
    "Credentials",
    "PullPolicy",
    "login",
    "logins",
    "logout",
    "options",
    "parse_platform",
    "pull",
    "tags",
]


def pull(
    home: Path,
    name: str,
    *,
    policy: PullPolicy = PullPolicy.ALWAYS,
    platform: Platform | None = None,
    insecure: bool = False,
    complete: bool = False,
    compression: str | None = None,
    credentials: Credentials | None = None,
    progress: Callable[[Progress], None] | None = None,
    abort: Abort | None = None,
) -> Image:
    """Fetch an image from its registry into the store, as far as the store does not have it.

    Args:
        name: a reference; ``insecure`` and ``credentials`` are for its registry only.
        complete: fetch also the original bytes of layers that are here from elsewhere: for saving the image.
        compression: how its files are kept, ``none`` or ``lz4``; by default as the environment says.
        platform: of a multi-platform image; this machine's by default.
        progress: called with each step, from several threads but never at once.
        abort: by which another thread can end it.

    Raises:
        ReferenceInvalid, ImageNotFound (with `PullPolicy.NEVER`), PullFailed, ImageInvalid, StateError.
    """
    with translated():
        store = image_store(home, platform, compression=compression)
        reference = Reference.parse(name)
        if policy is not PullPolicy.ALWAYS:
            try:
                return store.get(reference)
            except ImageNotFound:
                if policy is PullPolicy.NEVER:
                    raise
        chosen = options(home)
        if insecure:
            chosen = _insecure(chosen, reference.domain)
        source: CredentialSource = _credentials(home)
        if credentials is not None:
            source = Fixed(reference.domain, credentials)
        return store.pull(
            reference,
            registries=chosen,
            credentials=source,
            complete=complete,
            progress=progress,
            abort=abort,
        )


def parse_platform(text: str) -> Platform:
    """``OS/ARCHITECTURE[/VARIANT]``. Raises `ConfigError` for anything else."""
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(part.isalnum() for part in parts):
        raise ConfigError(f"platform: {text!r} is not OS/ARCHITECTURE[/VARIANT]", hint="such as linux/amd64")
    return Platform(*parts)


def login(
    home: Path, registry: str, username: str, password: str, *, insecure: bool = False, check: bool = True
) -> str:
    """Check credentials with their registry, keep them, and return where: ``keyring`` or a file's path.

    Raises:
        ConfigError: ``registry`` is no domain, or ``username`` has a colon.
        PullFailed: the registry refuses them, or cannot be asked.
        ImageError: they cannot be kept.
    """
    with translated():
        domain = _domain(registry)
        if ":" in username:
            raise ConfigError("username: a user name of a registry has no colon in it")
        chosen = _insecure(options(home), domain) if insecure else options(home)
        credentials = Credentials(username, password)
        if check:
            with RegistryClient(chosen, Fixed(domain, credentials)) as client:
                client.check(domain)
        return _file(home).put(domain, credentials)


def logout(home: Path, registry: str) -> bool:
    """Forget the credentials for a registry; say whether there were any."""
    with translated():
        return _file(home).remove(_domain(registry))


def logins(home: Path) -> Mapping[str, str]:
    """The registries that were logged in to, by domain, with the user names."""
    with translated():
        return _file(home).domains()


def tags(home: Path, name: str) -> list[str]:
    """The tags of a repository, in the registry's order. Raises `ReferenceInvalid`, `PullFailed`."""
    with translated(), RegistryClient(options(home), _credentials(home)) as client:
        return list(client.repository(Reference.parse(name)).tags())


def options(home: Path) -> Registries:
    """How registries are reached. Raises `ImageError` if the file that says it cannot be used."""
    with translated():
        return Registries.from_file(home / "registries.toml")


def _insecure(chosen: Registries, domain: str) -> Registries:
    before = chosen.of(domain)
    options = RegistryOptions(mirrors=before.mirrors, ca=before.ca, insecure=True)
    return replace(chosen, registries={**chosen.registries, domain: options})


def _credentials(home: Path) -> CredentialSource:
    return Chain(_file(home), DockerConfig.usual())


def _file(home: Path) -> CredentialFile:
    return CredentialFile(home / "registry-logins.json")


def _domain(registry: str) -> str:
    # As the docker command line has it: what stands in front of the first slash, without a scheme.
    text = registry.removeprefix("https://").removeprefix("http://").partition("/")[0]
    domain = Reference.parse(f"{text}/x").domain
    if text not in (domain, "index.docker.io"):
        # A repository of Docker Hub, to whom a password for something else must not go.
        raise ConfigError(
            f"registry: {text!r} is not the domain of a registry",
            hint="it has a dot or a port, as in the names of its images: registry.example, registry:5000",
        )
    return domain
