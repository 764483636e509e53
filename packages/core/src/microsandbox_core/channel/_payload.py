"""Control payloads: MessagePack, restricted as `docs/agent-channel.md` says under "Frames".

The restrictions are part of the protocol, not of a library: what one side accepts the other must
accept too, so everything that MessagePack allows beyond them is refused here.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgpack

from ._errors import ProtocolError

Value: TypeAlias = "bool | int | str | bytes | list[Value] | dict[str, Value] | None"
Control: TypeAlias = dict[str, Value]

MAX_DEPTH: Final = 8
MAX_OBJECTS: Final = 65536
_SCALARS: Final = frozenset({type(None), bool, int, str, bytes})


def _unique(pairs: list[tuple[object, object]]) -> dict[object, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code}")


def _check(top: object) -> None:
    """Raises `ValueError` unless `top` is within the restrictions.

    Level by level and not by recursion: depth is the sender's choice.
    """
    if type(top) is not dict:
        raise ValueError("the payload is not a map")
    level: list[object] = [top]
    objects = 1
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")
        below: list[object] = []
        for container in level:
            if type(container) is dict:
                objects += 2 * len(container)
                for key in container:
                    if type(key) is not str:
                        raise ValueError("a key is not a string")
                values = container.values()
            else:
                assert isinstance(container, list)
                objects += len(container)
                values = container  # type: ignore[assignment]  # both are only iterated
            if objects > MAX_OBJECTS:
                raise ValueError(f"more than {MAX_OBJECTS} objects")
            for value in values:
                kind = type(value)
                if kind in _SCALARS:
                    continue
                if kind is not dict and kind is not list:
                    raise ValueError(f"a value of type {kind.__name__}")
                below.append(value)
        level = below


def decode_control(payload: bytes) -> Control:
    """The map in `payload`. Raises `ProtocolError` with code `payload` for anything else."""
    size = min(len(payload), MAX_OBJECTS)
    try:
        # Array and map limits keep the library from reserving memory for items that cannot come;
        # without recursion on our side and with a fixed stack on its side, depth is harmless.
        value = msgpack.unpackb(
            payload,
            raw=False,
            use_list=True,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_extension,
            max_str_len=len(payload),
            max_bin_len=len(payload),
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
        )
        _check(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError("payload", str(error) or type(error).__name__) from None
    checked: Control = value
    return checked


def encode_control(control: Control) -> bytes:
    """The MessagePack form of `control`. Raises `ValueError` if it is outside the restrictions."""
    # Level by level first: the library would write tuples, floats and integers as keys without complaint.
    _check(control)
    try:
        packed: bytes = msgpack.packb(control, use_bin_type=True, strict_types=True)
    except (OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"cannot be sent: {error}") from None
    return packed
