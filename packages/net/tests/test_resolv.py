"""What of the host's resolv.conf a guest is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from microsandbox_net.resolv import search_domains


@pytest.mark.parametrize(
    ("text", "domains"),
    [
        ("nameserver 192.0.2.1\nsearch corp.example lab.example.\n", ("corp.example", "lab.example")),
        ("domain corp.example\n", ("corp.example",)),
        ("search one.example\n# search two.example\n", ("one.example",)),
        ("search one.example\ndomain two.example\n", ("two.example",)),
        ("search .\n", ()),
        ("search a..b -c.example d_1.example e;f\n", ("d_1.example",)),
        ("search " + "a" * 300 + "\n", ()),
        ("search " + " ".join(f"d{n}.example" for n in range(9)), tuple(f"d{n}.example" for n in range(6))),
        ("", ()),
    ],
)
def test_search_domains(tmp_path: Path, text: str, domains: tuple[str, ...]) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert search_domains(path) == domains


def test_without_the_file_there_are_none(tmp_path: Path) -> None:
    assert search_domains(tmp_path / "missing") == ()
