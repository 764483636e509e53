"""What errors become at the end of a command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from microsandbox.errors import ConfigError, StateError
from microsandbox_cli import report


def _interrupted_class() -> None:
    class Field:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    class Owner:
        field = Field()


def _given_up() -> None:
    try:
        raise KeyboardInterrupt
    finally:
        raise StateError("cannot remove the rest")


def _translated() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise OSError(5, "Input/output error") from error


def _fails() -> None:
    raise StateError("the disk is full")


def _is_wrong() -> None:
    raise ConfigError("memory is 5X")


@pytest.mark.parametrize(
    ("action", "code"),
    [(_interrupted_class, 130), (_given_up, 130), (_translated, 130), (_fails, 125), (_is_wrong, 2)],
)
def test_the_code_of_an_error(action: Callable[[], None], code: int) -> None:
    with pytest.raises(SystemExit) as ended, report.guarded():
        action()
    assert ended.value.code == code


def test_a_defect_is_not_taken_for_an_interrupt() -> None:
    with pytest.raises(RuntimeError, match="a defect"), report.guarded():
        raise RuntimeError("a defect")
