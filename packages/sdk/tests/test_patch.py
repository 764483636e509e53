"""Patches: what they are told to the agent as, and how they are kept until then."""

import os
from pathlib import Path
from typing import Any, cast

import pytest
from microsandbox import Patch
from microsandbox.errors import ConfigError, StateError
from microsandbox.patch import CHUNK, check, read_spool, write_spool


def test_content_comes_in_bounded_pieces() -> None:
    content = os.urandom(2 * CHUNK + 1)
    first, *rest = Patch.file("/a", content, mode=0o600).requests()
    assert (first["operation"], first["path"], first["mode"], first["replace"]) == (
        "write", b"/a", 0o600, False,
    )  # fmt: skip
    assert {request["operation"] for request in rest} == {"append"}
    assert b"".join(request["data"] for request in (first, *rest)) == content
    assert max(len(request["data"]) for request in (first, *rest)) == CHUNK


def test_an_empty_file_is_written_too() -> None:
    (only,) = Patch.text("/a", "").requests()
    assert (only["operation"], only["data"], only["mode"]) == ("write", b"", None)


def test_a_tree_is_copied_with_modes_and_links_and_without_the_rest(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o750)
    (tmp_path / "d" / "f").write_bytes(b"x")
    (tmp_path / "d" / "f").chmod(0o755)
    (tmp_path / "link").symlink_to("/anywhere")
    os.mkfifo(tmp_path / "pipe")
    tmp_path.chmod(0o700)
    requests = list(Patch.copy_dir(tmp_path, "/srv").requests())
    assert [(request["operation"], request["path"], request.get("mode")) for request in requests] == [
        ("mkdir", b"/srv", 0o700),
        ("mkdir", b"/srv/d", 0o750),
        ("write", b"/srv/d/f", 0o755),
        ("symlink", b"/srv/link", None),
    ]
    assert requests[-1]["target"] == b"/anywhere"


def test_what_the_host_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Patch.copy_file\('/a'\).*nothing: No such file"):
        list(Patch.copy_file(tmp_path / "nothing", "/a").requests())
    with pytest.raises(ConfigError, match="not a regular file"):
        list(Patch.copy_file(tmp_path, "/a").requests())
    with pytest.raises(ConfigError, match="copy_dir"):
        list(Patch.copy_dir(tmp_path / "nothing", "/a").requests())


@pytest.mark.parametrize("path", ["", "/", "a", "/a/../b", "/a\0"])
def test_a_path_is_absolute(path: str) -> None:
    with pytest.raises(ConfigError, match="patch text"):
        Patch.text(path, "x")


def test_what_cannot_be_done_is_refused_before() -> None:
    with pytest.raises(ConfigError, match="mode"):
        Patch.mkdir("/a", mode=0o10000)
    with pytest.raises(ConfigError, match="target"):
        Patch.symlink("", "/a")
    with pytest.raises(ConfigError, match="/cache would hide it"):
        check([Patch.text("/cache/x", "")], ["/cache"])
    check([Patch.text("/cached", "")], ["/cache"])
    with pytest.raises(TypeError, match="Patch"):
        check(cast(Any, ["text"]), [])


def test_the_content_is_not_shown() -> None:
    assert repr(Patch.text("/etc/token", "hunter2")) == "Patch.text('/etc/token')"


def test_a_spool_gives_back_what_was_put_in(tmp_path: Path) -> None:
    patches = [Patch.file("/a", os.urandom(CHUNK + 5)), Patch.remove("/b")]
    write_spool(tmp_path / "spool", patches)
    found = list(read_spool(tmp_path / "spool"))
    assert [request for _, request in found] == [r for patch in patches for r in patch.requests()]
    assert [name for name, _ in found] == ["patch 1, Patch.file('/a')"] * 2 + ["patch 2, Patch.remove('/b')"]
    with pytest.raises(StateError):
        write_spool(tmp_path / "spool", patches)
