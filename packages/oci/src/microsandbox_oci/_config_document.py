"""The whole image configuration document: platform, creation time and layer list beside the runtime part.

Format: OCI image specification, ``config.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

from microsandbox_oci._config import ImageConfig
from microsandbox_oci._digest import is_digest
from microsandbox_oci._errors import ImageInvalid, LimitExceeded
from microsandbox_oci._json import Node
from microsandbox_oci._platform import Platform

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_TIME_CHARACTERS = frozenset("0123456789-+:.TtZz")


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """What the store needs of an image configuration document."""

    config: ImageConfig
    platform: Platform | None
    created: str
    diff_ids: tuple[str, ...]


def parse_config(data: bytes, *, max_layers: int) -> ConfigDocument:
    """Parse an image configuration document.

    Raises:
        ImageInvalid: malformed, or its layer list is not one of sha256 digests.
        LimitExceeded: more than ``max_layers`` layers.
    """
    node = Node.parse(data, "image configuration")
    rootfs = node.child("rootfs")
    if rootfs is None or rootfs.text("type", "layers") != "layers":
        raise ImageInvalid("image configuration: rootfs is missing or is not of type layers", blob=node.what)
    diff_ids = rootfs.texts("diff_ids")
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise ImageInvalid(
                f"image configuration: diff id {diff_id[:100]!r} is not sha256: and 64 lower-case hex digits",
                blob=node.what,
            )
    if len(diff_ids) > max_layers:
        raise LimitExceeded(
            f"image has {len(diff_ids)} layers, the limit is {max_layers}",
            blob=node.what,
            expected=str(max_layers),
        )
    runtime = node.child("config")
    created = node.text("created")
    if not _is_time(created):
        created = ""  # shown on terminals, so nothing but a time may stand there
    return ConfigDocument(
        config=ImageConfig() if runtime is None else ImageConfig.from_node(runtime),
        platform=parse_platform(node),
        created=created,
        diff_ids=diff_ids,
    )


def _is_time(text: str) -> bool:
    """Say whether ``text`` has the characters of an RFC 3339 time."""
    return 20 <= len(text) <= 40 and text[4] == "-" and text[10] in "Tt" and _TIME_CHARACTERS.issuperset(text)


def parse_platform(node: Node) -> Platform | None:
    """Read ``os``, ``architecture`` and ``variant``; None where the document names no architecture."""
    parts = (node.text("os"), node.text("architecture"), node.text("variant"))
    for part in parts:
        # Shown in errors and listings; real values are Go's GOOS and GOARCH.
        if len(part) > 32 or not _NAME_CHARACTERS.issuperset(part):
            raise ImageInvalid(f"{node.what}: {part[:40]!r} is not the name of a platform", blob=node.what)
    if not parts[1]:
        return None
    return Platform(parts[0] or "linux", parts[1], parts[2] or None)
