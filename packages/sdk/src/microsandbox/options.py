"""What can be said of a sandbox when it is created, for functions that pass it on to `Sandbox.create`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from microsandbox._guest import Init
    from microsandbox.mounts import Mount
    from microsandbox.network import Network, NetworkPolicy
    from microsandbox.patch import Patch
    from microsandbox.ports import PortBinding


class SandboxOptions(TypedDict, total=False):
    """The parameters of `Sandbox.create` that a pool passes on to it."""

    cpus: int
    memory: int | str
    workdir: str | None
    user: str | None
    hostname: str | None
    entrypoint: Sequence[str] | None
    cmd: Sequence[str] | None
    env: Mapping[str, str] | None
    labels: Mapping[str, str] | None
    vmm: str
    require_kvm: bool
    cold: bool
    security: str
    rlimits: Mapping[str, int | tuple[int, int]] | None
    pull_policy: str
    registry_auth: tuple[str, str] | None
    registry_insecure: bool
    shell: str | None
    scripts: Mapping[str, str | bytes] | None
    tmpfs: Mapping[str, int | str | None] | None
    stop_signal: int | str | None
    init: str | Init | None
    root_disk: int | str | None
    volumes: Mapping[str, Mount] | None
    patches: Sequence[Patch]
    network: Network | NetworkPolicy | str | None


class CreateOptions(SandboxOptions, total=False):
    """The parameters of `Sandbox.create` but for `name`, `image` and `progress`."""

    ephemeral: bool | None
    detached: bool
    max_duration: float | str | None
    idle_timeout: float | str | None
    replace: bool
    replace_with_timeout: float | str | None
    ports: Sequence[PortBinding | str] | Mapping[int, int]
