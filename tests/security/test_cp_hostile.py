"""A guest that works against `msb cp`: nothing on the host changes but what is below the destination."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import Canary
from tests.support.msb import Msb

pytestmark = pytest.mark.vm


@pytest.fixture
def box(msb: Msb) -> Iterator[Msb]:
    """A sandbox named ``box`` runs."""
    msb("create", "busybox", "--name", "box", "-m", "128M").succeeded()
    yield msb
    msb("rm", "--force", "box").succeeded()


def shell(msb: Msb, script: str) -> bytes:
    return msb("exec", "box", "--", "sh", "-c", script).succeeded().out


def below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_planted_links_are_copied_and_not_followed(box: Msb, tmp_path: Path, canary: Canary) -> None:
    # F29
    outside = tmp_path / "outside"
    outside.mkdir()
    shell(
        box,
        f"mkdir -p /out/d; ln -s {canary.directory}/secret /out/x; ln -s {outside} /out/dir;"
        " ln -s ../../../../../../etc/passwd /out/up; ln -s . /out/self; echo y >/out/d/f",
    )
    for _ in range(2):  # the second time the links are there
        box("cp", "box:/out/.", tmp_path / "dst").succeeded()
    assert (tmp_path / "dst" / "up").readlink() == Path("../../../../../../etc/passwd")
    # What is a directory now goes where a link of the same name is: it is refused.
    shell(box, "rm /out/dir; mkdir /out/dir; echo pwned >/out/dir/f")
    assert "dst/dir" in box("cp", "box:/out/.", tmp_path / "dst").failed(1)
    # What is a file now takes the place of the link.
    shell(box, "rm -r /out/*; echo pwned >/out/x")
    box("cp", "box:/out/.", tmp_path / "dst").succeeded()
    assert not (tmp_path / "dst" / "x").is_symlink()
    assert below(outside) == []


def test_a_tree_that_changes_while_it_is_copied(box: Msb, tmp_path: Path, canary: Canary) -> None:
    # F07, F29: directories become links and links directories, as fast as the guest can.
    outside = tmp_path / "outside"
    outside.mkdir()
    shell(
        box,
        "mkdir -p /out/a /out/b /keep/a; echo f >/keep/a/f; echo g >/out/b/g\n"
        "(while [ ! -e /stop ]; do\n"
        f" rm -rf /out/a; ln -s {outside} /out/a; ln -s {outside}/new /out/b/new; rm -f /out/a /out/b/new\n"
        " mkdir /out/a; echo pwned >/out/a/f; echo pwned >/out/b/new; rm -f /out/b/new\n"
        "done) >/dev/null 2>&1 </dev/null &",
    )
    for number in range(12):
        done = box("cp", "box:/out/.", tmp_path / ("dst" if number % 2 else f"dst{number}"))
        if done.code != 0:
            done.failed(1)
    shell(box, "touch /stop")
    assert below(outside) == []
    assert sorted(path.name for path in tmp_path.rglob(".msb-*")) == []


def test_files_without_an_end_and_devices(box: Msb, tmp_path: Path) -> None:
    # F30
    shell(
        box,
        "mkdir /out; cd /out; mknod null c 1 3; mknod disk b 254 0; mkfifo fifo; mknod zero c 1 5;"
        " echo x >f; (while [ ! -e /stop ]; do echo more; done >grows) 2>/dev/null </dev/null &"
        " while [ ! -s /out/grows ]; do :; done",
    )
    done = box("cp", "box:/out", tmp_path / "dst").succeeded()
    shell(box, "touch /stop")
    assert below(tmp_path / "dst") == ["f", "grows"]
    assert all(name in done.complaint for name in ("null", "disk", "fifo", "zero"))
    for path in ("/out/zero", "/out/fifo"):
        box("cp", f"box:{path}", tmp_path / "x").failed(1)
    for path in ("/proc/kmsg", "/proc/version"):  # the first would wait, the second claims to be empty
        box("cp", f"box:{path}", tmp_path / "proc").succeeded()
    assert (tmp_path / "proc").read_text().startswith("Linux")


def test_names_that_would_steer_a_terminal_or_a_path(box: Msb, tmp_path: Path) -> None:
    shell(
        box,
        r"""mkdir /out; cd /out; touch -- -rf ' ' '\' ...; mkfifo "$(printf 'a\033]0;x\007')" """,
    )
    done = box("cp", "box:/out", tmp_path / "dst").succeeded()
    assert below(tmp_path / "dst") == [" ", "-rf", "...", "\\"]
    assert b"\x1b" not in done.err


def test_a_tree_that_is_too_deep(box: Msb, tmp_path: Path) -> None:
    shell(box, "mkdir /out; cd /out; for i in $(seq 300); do mkdir d; cd d; done")
    assert "box:/out/d/d" in box("cp", "box:/out", tmp_path / "dst").failed(1)


def test_links_in_the_way_inside_are_the_guests_own_affair(box: Msb, tmp_path: Path) -> None:
    # F31: the link is resolved in the guest, whose path it is; below it none is followed.
    (tmp_path / "src" / "d").mkdir(parents=True)
    (tmp_path / "src" / "d" / "f").write_text("x")
    shell(box, "mkdir /real /dst; ln -s /real /link; ln -s /real /dst/d")
    box("cp", tmp_path / "src" / "d" / "f", "box:/link").succeeded()
    assert shell(box, "ls /real") == b"f\n"
    assert "box:/dst/d" in box("cp", f"{tmp_path}/src/.", "box:/dst").failed(1)
    assert shell(box, "ls /real") == b"f\n"
