"""Directories of the guest's own by pattern: which there are, in bounds, and nothing outside of the share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from microsandbox import ConfigError, StartError, StateError, _guest_directories
from microsandbox._config import MountConfig
from microsandbox._guest_directories import search
from microsandbox.mounts import parse_volume
from microsandbox.supervisor._workspaces import record


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    for path in (
        "node_modules/x/node_modules", "packages/a/target", "packages/b/target/target", "packages/b/src",
        "packages/.c/target", "packages/deep/er/target", "web/node_modules",
    ):  # fmt: skip
        (root / path).mkdir(parents=True)
    (root / "packages/target").write_text("a file")
    outside = tmp_path / "outside"
    (outside / "node_modules").mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (root / "web/target").symlink_to(outside)
    return root


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["**/node_modules"], ["node_modules", "web/node_modules"]),
        (["*/node_modules"], ["web/node_modules"]),
        (["packages/*/target"], ["packages/.c/target", "packages/a/target", "packages/b/target"]),
        (["packages/[ab]/t?rget"], ["packages/a/target", "packages/b/target"]),
        (["packages/b/**/target", "**/deep/**/er"], ["packages/b/target", "packages/deep/er"]),
        (["**/**/er"], ["packages/deep/er"]),
        (["nothing*"], []),
        (["Node_modules*"], []),
    ],
)  # fmt: skip
def test_a_pattern_means_the_outermost_directories_that_match(
    tree: Path, patterns: list[str], expected: list[str]
) -> None:
    assert search(str(tree), patterns) == expected


def test_what_is_known_is_neither_told_nor_searched(tree: Path) -> None:
    assert search(str(tree), ["**/target"], {"packages"}) == []
    assert search(str(tree), ["**/target"], {"packages/a/target", "packages/b"}) == [
        "packages/.c/target",
        "packages/deep/er/target",
    ]


def test_names_are_bytes_and_what_cannot_be_read_is_left_out(tree: Path) -> None:
    os.mkdir(os.fsencode(tree) + b"/\xff")  # noqa: PTH102
    assert [os.fsencode(path) for path in search(str(tree), ["[!a-z]"])] == [b"\xff"]
    with pytest.raises(FileNotFoundError):
        search(str(tree / "gone"), ["*"])
    with pytest.raises(OSError, match="link"):
        search(str(tree / "link"), ["*"])


def test_a_search_is_bounded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(65):
        (tree / f"many/{number}/target").mkdir(parents=True)
    with pytest.raises(StateError, match="more than 64 directories match"):
        search(str(tree), ["many/*/target"])
    assert len(search(str(tree), ["many/[0-5]*/target", "many/6[0-3]/target"])) == 60
    with pytest.raises(StateError, match="more than 64"):
        search(str(tree), ["many/[0-5]*/target", "many/6[0-3]/target"], set("12345"))
    monkeypatch.setattr(_guest_directories, "ENTRIES_MAX", 20)
    with pytest.raises(StateError, match="more than 20 names"):
        search(str(tree), ["**/target"])
    monkeypatch.setattr(_guest_directories, "SECONDS_MAX", -1.0)
    with pytest.raises(StateError, match="longer than"):
        search(str(tree), ["**/target"])


@pytest.mark.parametrize("mode", ["share", "overlay", "clone"])
def test_what_has_been_found_keeps_its_place(tree: Path, tmp_path: Path, mode: str) -> None:
    own = tmp_path / "sandbox"
    own.mkdir()
    mount = MountConfig("/app", str(tree), mode=mode, guest=("packages/*/target", "x/y"))
    first = record(own, [mount])[0].guest
    assert first == ("x/y", "packages/.c/target", "packages/a/target", "packages/b/target")
    (tree / "packages/.a/target").mkdir(parents=True)
    (tree / "packages/a/target").rmdir()
    later = record(own, [mount])[0].guest
    # What the host has made since is not in a copy.
    assert later == (first if mode == "clone" else (*first, "packages/.a/target"))
    assert record(own, [mount])[0].guest == later


def test_paths_without_patterns_are_as_they_were(tree: Path, tmp_path: Path) -> None:
    mount = MountConfig("/app", str(tree), guest=("node_modules", "not/there"))
    assert record(tmp_path, [mount]) == [mount]
    assert not list(tmp_path.glob("workspace-*"))


def test_too_many_end_the_start_with_what_to_do(tree: Path, tmp_path: Path) -> None:
    for number in range(65):
        (tree / f"many/{number}").mkdir(parents=True)
    mount = MountConfig("/app", str(tree), guest=("many/*",))
    with pytest.raises(StartError, match=r"/app: .*guest=: more than 64") as refused:
        record(tmp_path, [mount])
    assert "narrower" in (refused.value.hint or "")


@pytest.mark.parametrize("path", ["**", "a/**", "../*", "/*", "*//a"])
def test_patterns_that_are_none_are_refused(tree: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="volume /app: guest="):
        parse_volume(f"{tree}:/app:guest={path}")
