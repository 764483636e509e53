"""Parts of lists: everything once, whatever comes and goes between them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox.page import Page, page_of


class Item(NamedTuple):
    id: str
    created_at: datetime


def items(numbers: list[int]) -> list[Item]:
    # Two of each moment, so that the moment alone does not tell them apart.
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return [Item(f"{number:016x}", begin + timedelta(microseconds=number // 2)) for number in numbers]


def test_a_page_is_a_sequence() -> None:
    page = Page([1, 2, 3], "next")
    assert (len(page), page[0], page[1:], list(page), 2 in page) == (3, 1, (2, 3), [1, 2, 3], True)
    assert (page.items, page.next_cursor) == ((1, 2, 3), "next")
    assert repr(page) == "Page([1, 2, 3], next_cursor='next')"


@given(st.integers(0, 40), st.integers(1, 45))
def test_pages_have_everything_once(count: int, limit: int) -> None:
    found: list[Item] = []
    cursor = None
    while True:
        page = page_of(items(list(range(count))), cursor, limit)
        found += page
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page) == limit
    assert found == items(list(range(count)))


def test_what_goes_meanwhile_moves_nothing() -> None:
    first = page_of(items([0, 1, 2, 3, 4]), None, 2)
    assert list(page_of(items([3, 4]), first.next_cursor, 2)) == items(
        [3, 4]
    )  # 1, the cursor's own, has gone
    assert list(page_of(items([2, 3, 4, 5]), first.next_cursor, None)) == items([2, 3, 4, 5])


def test_what_is_no_cursor_and_no_limit() -> None:
    for cursor in ("", "x", "5", "-1", "5-"):
        with pytest.raises(ValueError, match="cursor"):
            page_of(items([0]), cursor, None)
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            page_of(items([0]), None, limit)
    with pytest.raises(TypeError, match="limit"):
        page_of(items([0]), None, "5")  # type: ignore[arg-type]
