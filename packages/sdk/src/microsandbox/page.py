"""A part of a list that may be long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Generic, Protocol, TypeVar, overload

_Item = TypeVar("_Item", covariant=True)


class Page(Sequence[_Item], Generic[_Item]):
    """Some entries of a list, as a sequence. `next_cursor`: for those behind them; None at the end."""

    def __init__(self, items: Sequence[_Item], next_cursor: str | None = None) -> None:
        self._items = tuple(items)
        self.next_cursor = next_cursor

    @property
    def items(self) -> tuple[_Item, ...]:
        """The entries."""
        return self._items

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | Sequence[_Item]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[_Item]:
        return iter(self._items)

    def __repr__(self) -> str:
        return f"Page({list(self._items)!r}, next_cursor={self.next_cursor!r})"


class _Listed(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


_Found = TypeVar("_Found", bound=_Listed)


def page_of(found: Sequence[_Found], cursor: str | None, limit: int | None) -> Page[_Found]:
    """The part of `found`, oldest first, that is behind `cursor`. Raises `ValueError`, `TypeError`."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise TypeError(f"limit: expected int, not {type(limit).__name__}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} is not above zero")
    if cursor is not None:
        # By its time, not by its place: what it names may have been removed since.
        behind = _read_cursor(cursor)
        found = [item for item in found if _key(item) > behind]
    if limit is None or len(found) <= limit:
        return Page(found)
    moment, identifier = _key(found[limit - 1])
    return Page(found[:limit], f"{moment}-{identifier}")


def _key(item: _Listed) -> tuple[int, str]:
    return round(item.created_at.timestamp() * 1_000_000), item.id


def _read_cursor(cursor: str) -> tuple[int, str]:
    moment, _, identifier = cursor.partition("-")
    if not moment.isdigit() or not identifier:
        raise ValueError(f"cursor: {cursor!r} is not the `next_cursor` of a page")
    return int(moment), identifier
