"""The image's init as PID 1, agentd beside it."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.images import tar_of, write_layout
from tests.support.msb import Msb
from tests.support.systemd import build_root

pytestmark = pytest.mark.vm

INITTAB = b"""\
::sysinit:/bin/sh -c 'echo up > /told'
::once:/bin/sh -c 'echo up > /ready'
::shutdown:/bin/sh -c 'echo down >> /told'
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """busybox with an inittab and a FIFO in which its init says that it is up."""
    inittab, ready = tarfile.TarInfo("etc/inittab"), tarfile.TarInfo("ready")
    ready.type = tarfile.FIFOTYPE
    layers = [tar_of([(inittab, INITTAB), (ready, b"")])]
    config = ImageConfig(cmd=("/bin/init",), env=("FROM_IMAGE=1",))
    return f"oci:{write_layout(tmp_path_factory.mktemp('init') / 'image', config, layers)}"


@pytest.fixture
def dev(msb: Msb) -> Iterator[str]:
    """A name whose sandbox is removed."""
    yield "dev"
    msb("rm", "--force", "dev")


def _end(msb: Msb, name: str) -> dict[str, object]:
    (found,) = json.loads(msb("inspect", name).succeeded().out)
    assert isinstance(found["end"], dict)
    return found["end"]


def test_the_init_is_the_first_process_and_commands_run_beside_it(msb: Msb, image: str) -> None:
    script = (
        "cat /proc/1/comm; tr '\\0' '\\n' < /proc/1/environ | grep -E 'MINE|FROM_IMAGE|container' | sort;"
        "(sleep 9 & echo $! > /orphan); sed -n 's/^PPid:.//p' /proc/$(cat /orphan)/status"
    )
    done = msb("run", "--init", "auto", "--init-env", "MINE=2", image, "--", "sh", "-c", script).succeeded()
    assert done.text.splitlines() == ["busybox", "FROM_IMAGE=1", "MINE=2", "container=microsandbox", "1"]


def test_stopping_lets_the_init_shut_down_and_a_start_runs_it_again(msb: Msb, image: str, dev: str) -> None:
    msb("create", "--init", "/bin/init", "-n", dev, image).succeeded()
    for _ in range(2):
        assert msb("exec", dev, "--", "cat", "/ready").succeeded().text == "up\n"
        assert msb("exec", dev, "--", "cat", "/told").succeeded().text == "up\n"
        # busybox gives processes two seconds; had it to be killed, it would be ten minutes.
        msb("stop", "-t", "10m", dev, timeout=300).succeeded()
        assert _end(msb, dev) == {"cause": "requested", "reason": "it was asked to stop", "vmm_exit": 0}
        msb("start", dev).succeeded()
    (found,) = json.loads(msb("inspect", dev).succeeded().out)
    assert found["config"]["init"] == {"path": "/bin/init", "args": [], "env": {}}


def test_what_was_said_at_the_shutdown_is_on_the_disk(msb: Msb, image: str, dev: str) -> None:
    msb("create", "--init", "/bin/init", "-n", dev, "--script", "look=cat /told", image).succeeded()
    msb("exec", dev, "--", "cat", "/ready").succeeded()
    msb("exec", dev, "--", "sh", "-c", "sed -i /sysinit/d /etc/inittab").succeeded()
    msb("stop", "-t", "10m", dev, timeout=300).succeeded()
    msb("start", dev).succeeded()
    msb("exec", dev, "--", "cat", "/ready").succeeded()
    assert msb("exec", dev, "--", "look").succeeded().text == "up\ndown\n"


def test_nothing_that_an_init_does_to_everybody_reaches_the_agent(msb: Msb, image: str, dev: str) -> None:
    msb("create", "--init", "auto", "-n", dev, image).succeeded()
    killed = msb("exec", dev, "--", "sh", "-c", "kill -9 -1; echo there")
    assert killed.text == "there\n"  # kill(2): all but init and who asks
    msb("exec", dev, "--", "sh", "-c", "kill -9 1; kill 1; umount /proc")
    assert msb("exec", dev, "--", "echo", "still").succeeded().text == "still\n"
    msb("stop", dev).succeeded()


@pytest.mark.parametrize("command", [["poweroff"], ["poweroff", "-f"], ["reboot", "-f"]])
def test_the_host_sees_that_the_init_has_switched_off(
    msb: Msb, image: str, dev: str, command: list[str]
) -> None:
    msb("create", "--init", "auto", "-n", dev, image).succeeded()
    msb("exec", dev, "--", "cat", "/ready").succeeded()
    with msb.start("exec", dev, "--", "sh", "-c", "echo up; exec sleep 1000") as sleeping:
        assert sleeping.line() == b"up\n"  # one that came after the end would start the sandbox again
        msb("exec", dev, "--", *command)
        assert "the guest switched itself off" in msb("wait", dev).succeeded().text
        assert sleeping.finish(timeout=120).code in (125, 137, 143)
    assert _end(msb, dev)["cause"] == "guest"


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--init", "/sbin/nothing"], "init /sbin/nothing: No such file", 125),
        (["--init", "/etc/passwd"], "init /etc/passwd: Permission denied", 125),
        (["--init", "init"], "init: 'init' is not an absolute path", 2),
        (["--init-env", "A=b"], "--init-env is given without --init", 2),
    ],
)
def test_an_init_that_cannot_be_leaves_nothing(msb: Msb, options: list[str], said: str, code: int) -> None:
    assert said in msb("create", *options, "-n", "dev", "busybox").failed(code)
    assert msb("ls", "-q").text == ""


def test_a_program_of_ones_own_gets_the_signal_it_listens_for(msb: Msb, dev: str) -> None:
    script = "trap 'echo $WHO > /told; exit' USR1; while :; do sleep 1 & wait; done"
    msb(
        "create", "--init", "/bin/sh", "--init-arg=-c", "--init-arg", script, "--init-env", "WHO=me",
        "--stop-signal", "SIGUSR1", "-n", dev, "busybox",
    ).succeeded()  # fmt: skip
    # At once: until it listens the signal waits.
    msb("stop", "-t", "10m", dev, timeout=300).succeeded()
    msb("start", dev).succeeded()
    assert msb("exec", dev, "--", "cat", "/told").succeeded().text == "me\n"
    # One that does not listen is killed when the time is up.
    msb("rm", "--force", dev).succeeded()
    msb("create", "--init", "/bin/sleep", "--init-arg", "1000", "-n", dev, "busybox").succeeded()
    msb("exec", dev, "--", "touch", "/kept").succeeded()
    msb("stop", "-t", "500ms", dev).succeeded()
    assert _end(msb, dev)["cause"] == "requested"
    msb("start", dev).succeeded()
    msb("exec", dev, "--", "ls", "/kept").succeeded()


def test_the_command_of_an_image_made_for_an_init_is_not_run_twice(msb: Msb, image: str) -> None:
    done = msb("run", "--init", "/bin/init", image)
    assert "names no command" in done.failed()


def test_systemd_starts_its_services_and_stops_them(msb: Msb, dev: str, tmp_path: Path) -> None:
    root = build_root(tmp_path)
    if root is None:
        pytest.skip("no packages of systemd can be had from this machine's sources")
    os.mkfifo(root / "ready")
    msb("create", "--init", "auto", "-m", "1G", "-n", dev, root, timeout=180).succeeded()
    assert msb("exec", dev, "--", "cat", "/ready").succeeded().text == "up\n"
    assert msb("exec", dev, "--", "cat", "/proc/1/comm").succeeded().text == "systemd\n"
    show = ["systemctl", "show", "--property=ActiveState,ControlGroup", "told.service"]
    shown = msb("exec", dev, "--", *show).succeeded().text.splitlines()
    assert "ActiveState=active" in shown or "ActiveState=activating" in shown
    msb("stop", "-t", "10m", dev, timeout=300).succeeded()
    assert _end(msb, dev)["cause"] == "requested"
    msb("start", dev).succeeded()
    msb("exec", dev, "--", "cat", "/ready").succeeded()
    assert msb("exec", dev, "--", "cat", "/told").succeeded().text == "up\ndown\nup\n"
    msb("exec", dev, "--", "systemctl", "poweroff")
    assert "the guest switched itself off" in msb("wait", dev).succeeded().text
