"""Reading JSON documents that came from a registry or an archive: typed access, typed errors.

Every document here is hostile until its digest was checked, and may be after: nothing is assumed about
types, and the error names the member that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from microsandbox_oci._digest import is_digest
from microsandbox_oci._errors import ImageInvalid

_MAX_SIZE = 1 << 62


class Node(NamedTuple):
    """One JSON object with the name under which errors speak of it."""

    members: Mapping[str, Any]
    what: str

    @classmethod
    def parse(cls, data: bytes, what: str) -> Node:
        """Parse ``data`` as one JSON object called ``what``.

        Raises:
            ImageInvalid: not UTF-8 JSON, nested too deeply for the parser, or not an object.
        """
        return cls.of(parse_value(data, what), what)

    @classmethod
    def of(cls, value: object, what: str) -> Node:
        """Return ``value`` as a node, or raise `ImageInvalid` if it is not an object."""
        if not isinstance(value, dict):
            raise ImageInvalid(f"{what} is not a JSON object")
        return cls(value, what)

    def _fail(self, key: str, wanted: str) -> NoReturn:
        raise ImageInvalid(f"{self.what}: {key} is not {wanted}", blob=self.what)

    def text(self, key: str, default: str = "") -> str:
        """Return a string member; null and absent give ``default``."""
        value = self.members.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self._fail(key, "a string")
        return value

    def size(self, key: str) -> int:
        """Return a byte count: a non-negative integer below 2**62."""
        value = self.members.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_SIZE:
            self._fail(key, "a size in bytes")
        return value

    def digest(self, key: str) -> str:
        """Return a digest member (O12: anything but sha256: and 64 lower-case hex digits is refused)."""
        value = self.members.get(key)
        if not is_digest(value):
            shown = repr(value)[:100]
            raise ImageInvalid(
                f"{self.what}: {key} {shown} is not sha256: and 64 lower-case hex digits", blob=self.what
            )
        return str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return an array of strings; null and absent give an empty one."""
        value = self.members.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._fail(key, "an array of strings")
        return tuple(value)

    def text_map(self, key: str) -> dict[str, str]:
        """Return an object of strings; null and absent give an empty one."""
        value = self.members.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            self._fail(key, "an object of strings")
        return dict(value)

    def keys(self, key: str) -> tuple[str, ...]:
        """Return the sorted keys of an object used as a set (``ExposedPorts``, ``Volumes``)."""
        value = self.members.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            self._fail(key, "an object")
        return tuple(sorted(value))

    def child(self, key: str) -> Node | None:
        """Return an object member, None if it is null or absent."""
        value = self.members.get(key)
        return None if value is None else Node.of(value, f"{self.what}: {key}")

    def children(self, key: str) -> tuple[Node, ...]:
        """Return an array of objects; absent gives an empty one."""
        value = self.members.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self._fail(key, "an array")
        return tuple(Node.of(item, f"{self.what}: {key}[{index}]") for index, item in enumerate(value))


def parse_value(data: bytes, what: str) -> object:
    """Parse ``data`` as JSON called ``what``; see `Node.parse` for the errors."""
    try:
        value: object = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        # RecursionError: a document of a million opening brackets.
        raise ImageInvalid(f"{what} is not valid JSON: {str(error)[:120]}", blob=what) from error
    if rb"\ud" in data.lower() or rb"\u0000" in data:
        _refuse_unusable_text(value, what)
    return value


def _refuse_unusable_text(value: object, what: str) -> None:
    # Half a surrogate pair has no UTF-8 form and a NUL ends a C string: both would fail much later,
    # as a file name or in an environment, far from the document that holds them.
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ImageInvalid(f"{what} holds text that is not Unicode", blob=what) from error
    if r"\u0000" in text.replace(r"\\", ""):
        raise ImageInvalid(f"{what} holds a NUL character", blob=what)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def dump(value: object) -> bytes:
    """Encode ``value`` as JSON with one spelling per value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
