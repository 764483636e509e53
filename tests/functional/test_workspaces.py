"""A sandbox works on its own version of a directory, and brings back what is wanted of it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.support.msb import Msb

pytestmark = pytest.mark.vm

_WORK = """
cd /app
cat heavy/h && exit 1; echo guest > heavy/own
ls packages/*/big/x && exit 1; for name in a b; do echo $name > packages/$name/big/own; done
echo ONE > a; rm -r gone; mkdir gone; echo y > gone/y; rm sub/b; mkdir sub/b; echo z > sub/b/z
mkdir -p n/m; echo k > n/m/k; chmod 755 n/m/k; ln -s /etc/passwd leads; touch same
echo evil > swap; mknod dev c 1 3; mkfifo fifo; cp a suid; chmod 4755 suid
"""
_DONE = [
    "D /app/sub/b",
    "D /app/gone/x/f",
    "D /app/gone/x/",
    "M /app/a",
    "A /app/gone/y",
    "A /app/leads",
    "A /app/n/",
    "A /app/n/m/",
    "A /app/n/m/k",
    "A /app/sub/b/",
    "A /app/sub/b/z",
]


def _lines(text: str) -> list[str]:
    return text.splitlines()


@pytest.mark.parametrize("mode", ["overlay", "clone"])
def test_work_stays_in_the_sandbox_until_it_is_brought_back(msb: Msb, tmp_path: Path, mode: str) -> None:
    source = tmp_path / "src"
    for path in ("a", "sub/b", "gone/x/f", "same", "swap", "heavy/h", "packages/a/big/x", "packages/b/big/x"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(path)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    outside = tmp_path / "outside"
    outside.write_text("safe")
    volume = f"{source}:/app:{mode},guest=heavy,guest=**/big"
    msb("create", "busybox", "-n", "work", "-v", volume).succeeded()
    try:
        msb("exec", "work", "--", "sh", "-ec", _WORK).succeeded()
        assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
        changes = json.loads(msb("diff", "work", "--format", "json").succeeded().text)
        told = {entry["path"]: entry for entry in changes if entry["mount"] == "/app"}
        assert told["/app/dev"]["kind"] == "other"
        assert told["/app/n/m/k"]["change"] == "added"
        assert "/app/same" not in told
        assert not [path for path in told if path.startswith(("/app/heavy", "/app/packages"))]
        root = {entry["path"] for entry in changes if entry["mount"] == "/"}
        assert "/etc/hosts" in root
        assert not [path for path in root if path.startswith("/.msb")]
        # The host has put a link in a file's place: that is a conflict, and never followed.
        (source / "swap").unlink()
        (source / "swap").symlink_to(outside)
        refused = msb("apply", "work")
        assert refused.code == 1
        assert "/app/swap: it is something else on the host" in refused.complaint
        assert (source / "a").read_text() == "a"
        msb("apply", "work", "swap", "--force").succeeded()
        assert outside.read_text() == "safe"
        assert (source / "swap").read_text() == "evil\n"
        planned = msb("apply", "work", "--dry-run")
        assert (source / "a").read_text() == "a"
        done = msb("apply", "work")
        assert _lines(done.text) == _lines(planned.text) == _DONE
        assert done.code == 1
        for name in ("dev", "fifo", "suid"):
            assert f"stays in the sandbox: /app/{name}: it " in done.complaint
            assert not (source / name).exists()
        assert (source / "a").read_text() == "ONE\n"
        assert sorted(path.name for path in (source / "gone").iterdir()) == ["y"]
        assert (source / "sub/b/z").read_text() == "z\n"
        assert stat.S_IMODE((source / "n/m/k").stat().st_mode) == 0o755
        assert (source / "leads").readlink() == Path("/etc/passwd")
        assert (source / "heavy/h").read_text() == "heavy/h"
        left = ["A /app/dev", "A /app/fifo", "A /app/suid"]
        assert _lines(msb("diff", "work", "--mount", "/app").succeeded().text) == left
        # What is dropped is as the host has it, or as it was copied.
        msb("exec", "work", "--", "sh", "-c", "rm -r /app/n /app/gone; echo TWO > /app/a").succeeded()
        msb("discard", "work").succeeded()
        assert msb("diff", "work", "--mount", "/app").succeeded().text == ""
        was = "ONE\ny\nk\n" if mode == "overlay" else "a"
        script = "cd /app; cat a gone/* n/m/k" if mode == "overlay" else "cat /app/a"
        assert msb("exec", "work", "--", "sh", "-c", script).succeeded().text == was
        # Both outlive the machine: the guest's own directories, and what has not been brought back.
        msb("exec", "work", "--", "sh", "-c", "echo more > /app/more").succeeded()
        msb("stop", "work").succeeded()
        assert _lines(msb("diff", "work", "--mount", "/app").succeeded().text) == ["A /app/more"]
        assert msb("apply", "work", "nothing").code == 2
        # What has been found by a pattern keeps its place, whatever the host has made meanwhile.
        (source / "packages/0/big").mkdir(parents=True)
        own = msb("exec", "work", "--", "sh", "-c", "cd /app; cat heavy/own packages/*/big/own").succeeded()
        assert own.text == "guest\na\nb\n"
    finally:
        msb("rm", "-f", "work")
    assert (source / "a").read_text() == "ONE\n"
