"""`msb df` and `prune`, and `--cold`: what starts leave on the disk, and getting it back."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
from microsandbox_core import env

from tests.support.msb import Msb

pytestmark = pytest.mark.vm

with_templates = pytest.mark.skipif(
    env.value(env.MSB_COLD) is not None, reason="every start is cold in this run"
)


def _templates(msb: Msb) -> list[Path]:
    directory = msb.home / "cache" / "templates"
    return [path for path in directory.glob("*") if not path.name.startswith(".")]


def _usage(msb: Msb) -> dict[str, dict[str, int]]:
    shown = json.loads(msb("df", "--format", "json").succeeded().out)
    assert shown["size"] == sum(entry["size"] for entry in shown["kinds"])
    return {entry["kind"]: entry for entry in shown["kinds"]}


@pytest.fixture
def fresh(own_msb: Msb) -> Msb:
    """`msb` in a home without templates: those of another home are of no use in a copy of it."""
    assert _templates(own_msb) == []
    return own_msb


@with_templates
def test_df_shows_what_a_run_leaves(fresh: Msb) -> None:
    before = _usage(fresh)
    assert before["templates"]["count"] == 0
    fresh.run("true").succeeded()
    after = _usage(fresh)
    assert after["templates"]["count"] == len(_templates(fresh)) == 1
    assert after["templates"]["reclaimable"] == after["templates"]["size"] > 1 << 20
    assert after["images"] == before["images"]
    # Other tests may have loaded some before the home was copied.
    images = [path for path in (fresh.home / "cache" / "images").iterdir() if len(path.name) == 64]
    assert after["images"]["count"] == len(images) >= 1
    assert after["images"]["reclaimable"] > 0, "no sandbox is made from it"
    assert after["leftovers"]["count"] == after["running_sandboxes"]["count"] == 0


@with_templates
def test_prune_leaves_what_is_of_use_and_all_takes_the_templates(fresh: Msb) -> None:
    fresh.run("true").succeeded()
    (template,) = _templates(fresh)
    assert fresh("prune", "-q").succeeded().text == "", "the next start can use it"

    before = fresh.host.tree()
    foreseen = fresh("prune", "--all", "--dry-run").succeeded()
    assert template.name in foreseen.text
    assert foreseen.complaint == "dry run: nothing was changed\n"
    assert fresh.host.tree() == before

    done = fresh("prune", "--all").succeeded()
    assert done.out == foreseen.out
    assert _templates(fresh) == []
    assert fresh.run("echo", "again").succeeded().text == "again\n"
    assert [path.name for path in _templates(fresh)] == [template.name]


@with_templates
def test_prune_does_not_touch_sandboxes(fresh: Msb) -> None:
    for name in ("running", "stopped"):
        fresh("create", "busybox", "--name", name).succeeded()
        fresh("exec", name, "--", "sh", "-c", f"echo {name} > /kept").succeeded()
    fresh("stop", "stopped").succeeded()
    used = _usage(fresh)
    assert used["running_sandboxes"]["count"] == used["stopped_sandboxes"]["count"] == 1
    assert used["images"]["reclaimable"] == 0
    kinds = {item["kind"] for item in json.loads(fresh("prune", "--all", "--format", "json").out)["removed"]}
    assert kinds == {"template"}
    assert fresh("exec", "running", "--", "cat", "/kept").succeeded().text == "running\n"
    fresh("start", "stopped").succeeded()
    assert fresh("exec", "stopped", "--", "cat", "/kept").succeeded().text == "stopped\n"
    fresh("rm", "--force", "running", "stopped").succeeded()


def test_prune_removes_what_a_crash_left(fresh: Msb) -> None:
    # Twice, so that the crash does not hit the making of a template, of the machine or of the image.
    for _ in range(2):
        fresh.run("true").succeeded()
    with fresh.start("run", "busybox", "--", "sleep", "600") as command:
        sandbox = fresh.host.sandbox()
        # Stopped first: it may not get to clean up after the other's end.
        command.host_process.kill(signal.SIGSTOP)
        sandbox.supervisor.kill()
        sandbox.supervisor.wait_gone(within=60)
        command.host_process.kill()
    sandbox.vmm.wait_gone(within=60)
    assert fresh.host.directories() == [sandbox.id]
    assert _usage(fresh)["leftovers"]["count"] == 1
    (removed,) = json.loads(fresh("prune", "--format", "json").succeeded().out)["removed"]
    assert removed["kind"] == "sandbox"
    assert removed["size"] > 0
    assert fresh.host.directories() == fresh.host.rows() == []


@with_templates
def test_cold_starts_neither_make_nor_use_a_template(fresh: Msb) -> None:
    assert fresh.run("echo", "hi", options=["--cold"]).succeeded().text == "hi\n"
    fresh("create", "busybox", "--name", "dev", "--cold").succeeded()
    fresh("stop", "dev").succeeded()
    fresh("start", "dev").succeeded()
    fresh("rm", "--force", "dev").succeeded()
    fresh.with_settings(MSB_COLD="1").run("true").succeeded()
    assert _templates(fresh) == []
    fresh.with_settings(MSB_COLD="0").run("true").succeeded()
    assert len(_templates(fresh)) == 1


def _derived(msb: Msb) -> set[str]:
    """Kernels, boot disks, uppers and the small files about them."""
    return {
        path for path in msb.host.tree("cache") if path.split("/")[1] in ("kernels", "boot", "uppers")
    } | {path for path in msb.host.tree("cache") if path.startswith(("cache/kvm-", "cache/tsc-"))}


def test_what_an_earlier_installation_derived_goes_when_nothing_runs(fresh: Msb) -> None:
    fresh.run("true").succeeded()
    used = _derived(fresh)
    cache = fresh.home / "cache"
    digest = "0" * 64
    old = {
        cache / "kernels" / f"{digest}.elf": b"kernel",
        cache / "kernels" / f"{digest}.elf.checked": b"stamp",
        cache / "kernels" / f"from-{digest[:32]}": digest.encode(),
        cache / "boot" / f"{digest}.erofs": b"boot disk",
        cache / "boot" / f"from-{digest[:32]}": digest.encode(),
        cache / "uppers" / "8192M-000000000000.ext4": b"upper",
        cache / "tsc-of-another-boot": b"1000000",
    }
    for path, content in old.items():
        path.write_bytes(content)
    with fresh.start("run", "busybox", "--", "sh", "-c", "echo up; cat") as command:
        assert command.line() == b"up\n"
        assert _usage(fresh)["kernels"]["reclaimable"] == 0
        assert fresh("prune", "-q").succeeded().text == ""
        command.finish(b"")
    assert _usage(fresh)["kernels"]["reclaimable"] > 0
    removed = {
        item["name"] for item in json.loads(fresh("prune", "--format", "json").succeeded().out)["removed"]
    }
    assert removed == {str(path.relative_to(fresh.home)) for path in old}
    assert _derived(fresh) == used
    fresh.run("true").succeeded()
    assert _derived(fresh) == used


def test_looking_writes_nothing(fresh: Msb) -> None:
    """What a template depends on may have to be derived again; looking does not do that."""
    fresh.run("true").succeeded()
    for path in (*fresh.home.glob("cache/kernels/*"), *fresh.home.glob("cache/boot/*")):
        path.unlink()
    before, sizes = _written(fresh), _usage(fresh)
    for command in (("df",), ("prune", "--dry-run"), ("prune", "--all", "--dry-run")):
        fresh(*command).succeeded()
    assert _written(fresh) == before
    assert _usage(fresh) == sizes


def _written(msb: Msb) -> dict[str, int]:
    """When each file and each directory, but the database's, was last changed in any way."""
    return {path: (msb.home / path).lstat().st_ctime_ns for path in msb.host.tree() if path != "state.db"}


def test_starts_that_race_with_a_prune_succeed(fresh: Msb, settings: dict[str, str], tmp_path: Path) -> None:
    """The pruner has another kernel installed, so for it the one of these starts is superseded."""
    library = bytearray(Path(settings[env.MSB_LIBKRUNFW]).read_bytes())
    library[library.index(b"Linux version ")] ^= 0x20
    other = tmp_path / "libkrunfw.so.5"
    other.write_bytes(library)
    pruner = fresh.with_settings(MSB_LIBKRUNFW=str(other))
    over = threading.Event()
    removed: list[str] = []

    def prune() -> None:
        while not over.is_set():
            done = json.loads(pruner("prune", "--format", "json").succeeded().out)
            removed.extend(item["kind"] for item in done["removed"])

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        number = 0
        # Between two of them nobody may have come by to remove the kernel.
        while number < 6 or "kernel" not in removed:
            assert fresh.run("echo", str(number)).succeeded().text == f"{number}\n"
            number += 1
            assert number < 100, removed
    finally:
        over.set()
        thread.join()
