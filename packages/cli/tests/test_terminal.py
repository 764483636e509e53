"""Which command gets a terminal, and the keys that leave it."""

import os
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox.errors import ConfigError
from microsandbox.terminal import DetachKeys
from microsandbox_cli.run import _wants_terminal


@pytest.mark.parametrize(
    ("stdin", "stdout", "tty", "no_tty", "no_stdin", "wanted"),
    [
        (True, True, False, False, False, True),
        (True, False, False, False, False, False),
        (False, True, False, False, False, False),
        (True, True, False, True, False, False),
        (True, True, False, False, True, False),
        (False, False, True, False, False, True),
        (False, False, True, False, True, True),
    ],
)
def test_a_terminal_is_for_who_has_one_or_asks_for_one(
    stdin: bool, stdout: bool, tty: bool, no_tty: bool, no_stdin: bool, wanted: bool
) -> None:
    with patch.object(os, "isatty", lambda descriptor: (stdin, stdout)[descriptor]):
        assert _wants_terminal(tty, no_tty, no_stdin) is wanted


def test_both_ways_at_once_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        _wants_terminal(True, True, False)
    assert end.value.code == 2
    assert "--no-tty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sequence"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a", b"a"), ("ctrl-],.", b"\x1d."), ("ctrl-@,ctrl-_", b"\0\x1f")],
)
def test_keys_are_read(text: str, sequence: bytes) -> None:
    keys = DetachKeys.parse(text)
    assert keys is not None
    assert keys.take(b"x" + sequence + b"y") == (b"x", True)


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "a,", ",", "\u00fc", "Ctrl-p"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--detach-keys"):
        DetachKeys.parse(text)


def test_no_keys_are_none() -> None:
    assert DetachKeys.parse("") is None


def test_the_beginning_of_the_sequence_is_held_back_until_it_is_none() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.take(b"a\x10") == (b"a", False)
    assert keys.take(b"\x10") == (b"\x10", False)
    assert keys.take(b"b") == (b"\x10b", False)
    assert keys.take(b"\x10") == (b"", False)
    assert keys.take(b"\x11") == (b"", True)


@given(st.binary(min_size=1, max_size=4), st.lists(st.binary(max_size=4), max_size=8))
def test_every_key_arrives_whatever_the_pieces(sequence: bytes, pieces: list[bytes]) -> None:
    keys = DetachKeys(sequence)
    passed, typed = b"", b""
    for piece in pieces:
        typed += piece
        data, complete = keys.take(piece)
        passed += data
        assert complete is (sequence in typed)
        if complete:
            assert passed == typed[: typed.index(sequence)]
            return
    # What is missing is the beginning of a sequence that may still be completed.
    assert typed.startswith(passed)
    assert sequence.startswith(typed[len(passed) :])
