"""`msb df` and `prune`, and `--cold`: what starts leave on the disk, and getting it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from microsandbox_core import env

from tests.support.msb import Msb

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(env.value(env.MSB_COLD) is not None, reason="every start is cold in this run"),
]


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
    fresh.run("true").succeeded()  # so that the crash does not hit the making of the template
    with fresh.start("run", "busybox", "--", "sleep", "600") as command:
        sandbox = fresh.host.sandbox()
        sandbox.supervisor.kill()
        sandbox.supervisor.wait_gone(within=10)
        command.host_process.kill()
    sandbox.vmm.wait_gone(within=10)
    assert fresh.host.directories() == [sandbox.id]
    assert _usage(fresh)["leftovers"]["count"] == 1
    (removed,) = json.loads(fresh("prune", "--format", "json").succeeded().out)["removed"]
    assert removed["kind"] == "sandbox"
    assert removed["size"] > 0
    assert fresh.host.directories() == fresh.host.rows() == []


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
