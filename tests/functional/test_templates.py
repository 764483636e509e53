"""Starting without booting: what is shared between sandboxes of one template, and what must not be."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from microsandbox_core import env
from microsandbox_core.templates import _named_files

from tests.support.msb import Msb
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(env.value(env.MSB_COLD) is not None, reason="every start is cold in this run"),
]

_IDENTITY = (
    "cat /etc/machine-id; hostname; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | xxd -p"
)


def _templates(msb: Msb) -> list[Path]:
    directory = msb.home / "cache" / "templates"
    return sorted(path for path in directory.glob("*") if path.is_dir() and not path.name.startswith("."))


def _record(template: Path) -> dict[str, str]:
    lines = (template / "record").read_text().splitlines()
    return dict(line.partition(" ")[::2] for line in lines)


def _mounted(msb: Msb) -> list[Path]:
    """The templates that have an image mounted."""
    return [path for path in _templates(msb) if _record(path)["image"]]


def _why_booted(msb: Msb, *options: str) -> str:
    """What `msb run` says of why it booted a kernel; empty if it did not. That it had to mount the image,
    because a template was just being made, is no reason of that kind."""
    done = msb("--log-level", "debug", "run", *options, "busybox", "--", "true").succeeded()
    lines = [line for line in done.complaint.splitlines() if line.startswith("debug: the kernel")]
    return "\n".join(lines)


def _vouch_for(template: Path) -> None:
    """Change the record so that the files are as it says."""
    record = (template / "record").read_text().splitlines()
    lines = [f"files {_named_files(template)}" if line.startswith("files ") else line for line in record]
    (template / "record").write_text("\n".join(lines) + "\n")


def test_the_first_start_makes_a_template_and_the_second_one_of_the_image(own_msb: Msb) -> None:
    assert _why_booted(own_msb) == ""
    (made,) = _templates(own_msb)
    assert _why_booted(own_msb) == ""
    (mounted,) = _mounted(own_msb)
    assert _record(mounted)["base"] == made.name
    files = [made / "memory", mounted / "memory", mounted / "upper"]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in files]
    assert _why_booted(own_msb) == ""
    assert len(_templates(own_msb)) == 2
    assert [(p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in files] == before
    assert {path.name for path in made.iterdir()} == {"memory", "state", "record"}
    assert {path.name for path in mounted.iterdir()} == {"memory", "state", "record", "upper"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in [*made.iterdir(), *mounted.iterdir()])


def test_the_sandbox_of_which_a_template_was_made_runs_on_without_it(own_msb: Msb) -> None:
    own_msb("create", "--name", "first", "busybox").succeeded()
    (made,) = _templates(own_msb)
    files = [path.stat().st_ctime_ns for path in sorted(made.iterdir())]
    own_msb(
        "exec", "first", "--", "sh", "-c", "echo kept > /kept; sync; head -c 1000000 /bin/busybox | wc -c"
    ).succeeded()
    held = own_msb.host.sandbox().vmm.descriptors.values()
    assert [target for target in held if target.startswith(str(made.parent))] == []
    assert "/templates/" not in Path(f"/proc/{own_msb.host.sandbox().vmm.pid}/maps").read_text()
    assert own_msb.run("echo", "up").succeeded().text == "up\n"
    assert [path.stat().st_ctime_ns for path in sorted(made.iterdir())] == files
    own_msb("stop", "first").succeeded()
    own_msb("start", "first").succeeded()
    assert own_msb("exec", "first", "--", "cat", "/kept").succeeded().text == "kept\n"
    own_msb("rm", "--force", "first").succeeded()


def test_sandboxes_of_one_image_have_roots_of_their_own(own_msb: Msb) -> None:
    for number in range(4):
        done = own_msb.run("sh", "-c", f"ls /; cat /made 2>/dev/null; echo {number} > /made; cat /made")
        assert done.succeeded().text.splitlines()[-1] == str(number)
        assert "made" not in done.text.splitlines()
    assert len(_mounted(own_msb)) == 1


def test_a_sandbox_that_began_with_a_mounted_image_is_started_again(own_msb: Msb) -> None:
    for _ in range(2):
        own_msb.run("true").succeeded()
    own_msb("create", "--name", "box", "busybox").succeeded()
    own_msb("exec", "box", "--", "sh", "-c", "echo kept > /kept").succeeded()
    for _ in range(2):
        own_msb("stop", "box").succeeded()
        own_msb("start", "box").succeeded()
        assert own_msb("exec", "box", "--", "cat", "/kept").succeeded().text == "kept\n"
    own_msb("rm", "--force", "box").succeeded()
    assert len(_templates(own_msb)) == 2


def test_the_template_of_an_image_that_is_gone_is_pruned(own_msb: Msb) -> None:
    for _ in range(2):
        own_msb.run("true").succeeded()
    (mounted,) = _mounted(own_msb)
    own_msb("prune").succeeded()
    assert mounted.exists()
    own_msb("rmi", "busybox").succeeded()
    own_msb("prune").succeeded()
    assert not mounted.exists()
    assert len(_templates(own_msb)) == 1


@pytest.mark.parametrize("name", ["memory", "state", "upper", "record"])
def test_the_template_of_an_image_is_checked_like_any_other(own_msb: Msb, name: str) -> None:
    for _ in range(2):
        own_msb.run("true").succeeded()
    (mounted,) = _mounted(own_msb)
    with (mounted / name).open("r+b") as file:
        file.write(b"damage")
    damaged = (mounted / name).stat()
    assert own_msb.run("echo", "up").succeeded().text == "up\n"
    (again,) = _mounted(own_msb)
    assert again.name == mounted.name
    assert (again / name).stat().st_ctime_ns > damaged.st_ctime_ns
    assert all(path.stat().st_mtime_ns > damaged.st_ctime_ns for path in again.iterdir())


def test_a_mounted_template_that_cannot_be_loaded_is_replaced_by_a_boot(own_msb: Msb) -> None:
    for _ in range(2):
        own_msb.run("true").succeeded()
    (mounted,) = _mounted(own_msb)
    (mounted / "state").write_bytes(b"not a state of a machine")
    _vouch_for(mounted)
    done = own_msb("--log-level", "debug", "run", "busybox", "--", "sh", "-c", "echo new > /new; cat /new")
    assert done.succeeded().text == "new\n"
    assert "the template was given up" in done.complaint
    assert _mounted(own_msb) == []


def test_sandboxes_of_one_template_are_not_alike(msb: Msb) -> None:
    seen = [msb.run("sh", "-c", _IDENTITY).succeeded().text.split() for _ in range(3)]
    for values in zip(*seen, strict=True):
        assert len(set(values)) == 3, values


def test_the_clock_is_right(msb: Msb) -> None:
    for _ in range(3):
        before = time.time()
        # Busybox's date has no fractions; the time of a file that is being written has.
        text = msb.run("sh", "-c", "touch /tmp/now; stat -c %y /tmp/now; date +%s").succeeded().text
        after = time.time()
        day, clock, _zone = text.splitlines()[0].split()
        whole, _, fraction = clock.partition(".")
        seen = _seconds(day, whole) + float("0." + (fraction or "0"))
        assert before - 0.1 <= seen <= after + 0.1


def _seconds(day: str, clock: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(f"{day}T{clock}+00:00").timestamp()


def test_cold_boots_and_says_so(msb: Msb) -> None:
    assert "a cold start was asked for" in _why_booted(msb, "--cold")


def test_other_sizes_have_templates_of_their_own(own_msb: Msb) -> None:
    for number, options in enumerate((("-m", "128M"), ("-c", "2"), ("-m", "256M", "-c", "2")), start=1):
        done = own_msb("--log-level", "debug", "run", *options, "busybox", "--", "nproc").succeeded()
        assert done.text == ("2\n" if "-c" in options else "1\n")
        assert len(_templates(own_msb)) == number, done.complaint
    memory = own_msb("run", "-m", "128M", "busybox", "--", "head", "-1", "/proc/meminfo").succeeded().text
    assert 64 << 10 < int(memory.split()[1]) < 128 << 10
    assert [_record(path)["memory_mib"] for path in _mounted(own_msb)] == ["128"]
    assert len(_templates(own_msb)) == 4


@pytest.mark.parametrize("damage", ["write", "truncate", "state", "record", "missing", "foreign"])
def test_a_template_that_is_not_as_it_was_made_is_never_started(own_msb: Msb, damage: str) -> None:
    own_msb.run("true").succeeded()
    (made,) = _templates(own_msb)
    memory = made / "memory"
    if damage == "write":
        times = memory.stat()
        with memory.open("r+b") as file:
            file.seek(16 << 20)
            file.write(b"\xcc" * 4096)
        os.utime(memory, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "truncate":
        os.truncate(memory, memory.stat().st_size // 2)
    elif damage == "state":
        (made / "state").write_bytes(b"QEVM" + os.urandom(1000))
    elif damage == "record":
        (made / "record").write_bytes(b"\xff\x00version 1\nfiles")
    elif damage == "missing":
        (made / "state").unlink()
    else:
        shutil.copy2(memory, made / "other")
        (made / "other").replace(memory)
    damaged = (made / "record").stat().st_ctime_ns
    assert own_msb.run("echo", "up").succeeded().text == "up\n"
    (again,) = _templates(own_msb)
    assert again.name == made.name
    assert (again / "record").stat().st_mtime_ns > damaged
    own_msb("prune").succeeded()  # which removes what no start can use
    assert made.name in [path.name for path in _templates(own_msb)]
    assert not [path.name for path in again.parent.glob(".*")]


def test_a_template_that_cannot_be_loaded_is_replaced_by_a_boot(own_msb: Msb) -> None:
    """The record says that the files are good, and QEMU finds that they are not."""
    own_msb.run("true").succeeded()
    (made,) = _templates(own_msb)
    (made / "state").write_bytes(b"not a state of a machine")
    _vouch_for(made)
    assert "the template was given up" in _why_booted(own_msb)
    assert _templates(own_msb) == []
    assert _why_booted(own_msb) == ""


def test_a_home_whose_templates_cannot_be_written_boots(own_msb: Msb) -> None:
    directory = own_msb.home / "cache" / "templates"
    directory.write_text("in the way")
    assert "no template" in _why_booted(own_msb)


@pytest.mark.alone(reason="fifty machines start at once: a load for whoever has a deadline")
def test_fifty_first_starts_make_one_template_of_each_kind(own_msb: Msb) -> None:
    running = [own_msb.start("run", "-q", "busybox", "--", "echo", "up") for _ in range(50)]
    made = set()
    for command in running:
        with command:
            done = command.finish(b"", timeout=300)
            assert (done.code, done.out) == (0, b"up\n"), done.complaint
            made |= {(path.name, path.stat().st_ino) for path in _templates(own_msb)}
    # That of the image is made by one that began when the other was there.
    own_msb.run("true").succeeded()
    made |= {(path.name, path.stat().st_ino) for path in _templates(own_msb)}
    assert len(made) == 2
    assert len(_mounted(own_msb)) == 1


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.6, 0.9, 1.1, 1.2, 1.3, 1.4])
def test_killing_the_maker_leaves_nothing_that_is_trusted(own_msb: Msb, delay: float) -> None:
    # L03
    directory = own_msb.home / "cache" / "templates"
    with own_msb.start("run", "-q", "busybox", "--", "sleep", "60") as command:
        eventually(own_msb.host.processes, within=60, what="a supervisor")
        # Some moment of making it: nothing is waited for, the kill is meant to fall anywhere.
        time.sleep(delay)
        for process in own_msb.host.processes():
            process.kill(signal.SIGKILL)
        command.process.kill()
    eventually(lambda: not own_msb.host.processes(), within=60, what="no process")
    # None if it was being made; if it was there already, the next start makes that of the image.
    before = _templates(own_msb)
    assert own_msb.run("echo", "up").succeeded().text == "up\n"
    assert len(_templates(own_msb)) == len(before) + 1
    assert [path.name for path in directory.iterdir() if path.name.endswith(".tmp")] == []
    own_msb("ls").succeeded()
    own_msb.host.wait_empty()
