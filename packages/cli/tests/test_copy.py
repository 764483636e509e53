"""What the two ends of a copy mean."""

import pytest
from microsandbox.errors import ConfigError
from microsandbox_cli.copy import Location, parse_location


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("dev:/srv", Location("dev", "/srv")),
        ("dev:/", Location("dev", "/")),
        ("dev:/a:b", Location("dev", "/a:b")),
        ("file", Location(None, "file")),
        ("./dev:/srv", Location(None, "./dev:/srv")),
        ("/a:b", Location(None, "/a:b")),
        ("..", Location(None, "..")),
    ],
)
def test_an_end_is_a_sandbox_or_the_host(text: str, wanted: Location) -> None:
    assert parse_location(text) == wanted


@pytest.mark.parametrize("text", ["", ":/a", ":", "dev:", "dev:srv", "dev:./srv"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_location(text)
