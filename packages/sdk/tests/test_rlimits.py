"""Resource limits as users write them, and how refusals read."""

import pytest
from microsandbox._rlimits import NAMES, as_numbers, check_rlimits, merged, parse_rlimits
from microsandbox.errors import ConfigError
from microsandbox_core.requests import UNLIMITED


def test_texts_are_understood() -> None:
    given = ["nofile=1024:2048", "core=unlimited", "cpu=5:unlimited", "nproc=7", "stack=-1", "nproc=8"]
    assert parse_rlimits(given) == (
        ("nofile", 1024, 2048),
        ("core", UNLIMITED, UNLIMITED),
        ("cpu", 5, UNLIMITED),
        ("nproc", 8, 8),
        ("stack", UNLIMITED, UNLIMITED),
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("", "not a limit"),
        ("nofile", "not a limit"),
        ("nofile=", "not a limit"),
        ("=5", "not a limit"),
        ("nofile=5:", "not a limit"),
        ("nofile=:5", "not a limit"),
        ("nofile=5:6:7", "'6:7'"),
        ("nofile=-2", "'-2'"),
        ("nofile=1K", "'1K'"),
        ("nofile=\N{SUPERSCRIPT TWO}", "not a limit"),
        ("nofile=18446744073709551616", "18446744073709551616"),
        ("nofile=2:1", "soft limit 2 is above the hard one 1"),
        ("nofile=unlimited:1", "soft limit unlimited is above the hard one 1"),
        ("NOFILE=1", "'NOFILE'"),
        ("files=1", "'files'"),
    ],
)
def test_texts_that_cannot_be_are_refused(given: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match="rlimit") as caught:
        parse_rlimits([given])
    assert complaint in str(caught.value)
    assert caught.value.hint


def test_numbers_are_checked() -> None:
    assert check_rlimits({"nofile": 5, "core": (0, -1)}) == (("nofile", 5, 5), ("core", 0, UNLIMITED))
    assert len(check_rlimits(dict.fromkeys(NAMES, 1))) == 16
    wrong = [True, 1.5, "5", (1,), (1, 2, 3), (1, True), None]
    for value in wrong:
        with pytest.raises(TypeError, match="nofile"):
            check_rlimits({"nofile": value})  # type: ignore[dict-item]
    for value in (-2, 2**64, (2, 1)):
        with pytest.raises(ConfigError, match="nofile"):
            check_rlimits({"nofile": value})


def test_the_latter_goes_before_the_former() -> None:
    sandbox = check_rlimits({"nofile": 5, "core": 0})
    command = check_rlimits({"nofile": 6, "cpu": -1})
    assert as_numbers(merged(sandbox, command)) == {"nofile": [6, 6], "core": [0, 0], "cpu": [-1, -1]}
