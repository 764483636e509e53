"""How an image says it was built.

Format: the ``history`` member of an OCI image configuration (``config.md``).
"""

from __future__ import annotations

from dataclasses import dataclass

from microsandbox_oci._errors import ImageInvalid
from microsandbox_oci._json import Node

_MAX_STEPS = 4096


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a build, as the image tells it: nothing of it is verified.

    Attributes:
        created: RFC 3339 time, or "".
        created_by: the command.
        comment: whatever the builder added.
        layer: diff id of the layer that it made, None if it made none.
        size: bytes of that layer's file in the store, 0 without one.
    """

    created: str
    created_by: str
    comment: str
    layer: str | None
    size: int


def read_history(config: bytes, layers: dict[str, int], diff_ids: tuple[str, ...]) -> list[Step]:
    """Return the steps, oldest first; layers that no step claims come as steps without a command.

    Args:
        config: the image configuration document.
        layers: file sizes in bytes by diff id.
        diff_ids: the layers, base first.

    Raises:
        ImageInvalid: the history is not a list of objects, or is too long.
    """
    entries = Node.parse(config, "image configuration").children("history")
    if len(entries) > _MAX_STEPS:
        raise ImageInvalid(f"image configuration: more than {_MAX_STEPS} steps of history")
    left = list(diff_ids)
    steps = []
    for entry in entries:
        layer = left.pop(0) if left and entry.members.get("empty_layer") is not True else None
        steps.append(
            Step(
                entry.text("created"),
                entry.text("created_by"),
                entry.text("comment"),
                layer,
                0 if layer is None else layers[layer],
            )
        )
    steps += [Step("", "", "", layer, layers[layer]) for layer in left]
    return steps
