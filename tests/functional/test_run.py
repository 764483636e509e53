"""`msb run`: output, exit codes, options."""

from __future__ import annotations

from pathlib import Path

import pytest
from microsandbox_oci import ImageConfig

from tests.support.host import Host
from tests.support.images import busybox_program, write_layout
from tests.support.msb import Msb

pytestmark = pytest.mark.vm


def test_output_goes_where_it_was_written_and_the_exit_code_comes_through(msb: Msb) -> None:
    done = msb.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.out, done.err, done.code) == (b"out\n", b"err\n", 7)


def test_a_command_killed_by_signal_9_exits_137(msb: Msb) -> None:
    assert msb.run("sh", "-c", "kill -9 $$").code == 137


def test_an_unknown_command_exits_127_with_one_line(msb: Msb) -> None:
    assert "no-such-command" in msb.run("no-such-command").failed(127)


def test_a_file_that_is_not_executable_exits_126_with_one_line(msb: Msb) -> None:
    assert "/etc/passwd" in msb.run("/etc/passwd").failed(126)


def test_a_time_limit_kills_the_command_keeps_its_output_and_exits_124(msb: Msb) -> None:
    done = msb.run("sh", "-c", "echo so far; sleep 600", options=["--timeout", "5s"])
    done.failed(124, hint=False)
    assert done.out == b"so far\n"


def test_a_time_limit_that_is_not_reached_changes_nothing(msb: Msb) -> None:
    assert msb.run("echo", "in time", options=["--timeout", "5m"]).succeeded().text == "in time\n"


def test_the_machine_has_the_memory_and_the_processors_asked_for(msb: Msb) -> None:
    done = msb.run("sh", "-c", "nproc; grep MemTotal /proc/meminfo", options=["-c", "2", "-m", "256M"])
    processors, total = done.succeeded().text.splitlines()
    assert processors == "2"
    # The kernel keeps some of it to itself.
    assert 190 << 10 < int(total.split()[1]) <= 256 << 10


def test_environment_workdir_user_and_hostname_are_as_asked_for(msb: Msb) -> None:
    done = msb(
        "run", "-e", "GREETING=hello there", "-e", "FROM_HOST", "-e", "NOT_ON_THE_HOST",
        "-w", "/var/tmp", "-u", "demo", "-H", "guest-7",
        "busybox", "--", "sh", "-c",
        'echo "$GREETING/$FROM_HOST/${NOT_ON_THE_HOST-unset}"; pwd; id -u; id -g; echo $HOME; hostname',
        environ={b"FROM_HOST": b"taken"},
    )  # fmt: skip
    assert done.succeeded().text.splitlines() == [
        "hello there/taken/unset", "/var/tmp", "1000", "1000", "/home/demo", "guest-7",
    ]  # fmt: skip


def test_a_user_that_the_image_does_not_have_is_an_error(msb: Msb) -> None:
    assert "stranger" in msb.run("true", options=["-u", "stranger"]).failed(125)


def test_a_working_directory_that_cannot_be_is_an_error(msb: Msb) -> None:
    # One that is merely missing is made: see test_guest_options.
    assert "/etc/passwd/such" in msb.run("true", options=["-w", "/etc/passwd/such"]).failed(125)


def test_an_entrypoint_replaces_the_images_and_drops_its_command(msb: Msb) -> None:
    done = msb("run", "--entrypoint", "echo", "busybox", "--", "as", "argument")
    assert done.succeeded().text == "as argument\n"


def test_without_a_command_the_images_runs_and_reads_standard_input(msb: Msb) -> None:
    done = msb("run", "busybox", stdin=b"echo from the script\nexit 3\n")
    assert (done.code, done.text) == (3, "from the script\n")


def test_the_images_configuration_is_followed(msb: Msb, tmp_path: Path) -> None:
    layout = write_layout(
        tmp_path / "layout",
        ImageConfig(
            env=("PATH=/bin", "COLOUR=green", "SHAPE=round"),
            entrypoint=("sh", "-c", 'echo "$0 $1 $COLOUR $SHAPE $(pwd) $(id -un)"'),
            cmd=("zero", "one"),
            working_dir="/var",
            user="demo",
        ),
    )
    assert msb("run", f"oci:{layout}").succeeded().text == "zero one green round /var demo\n"
    done = msb("run", "-e", "SHAPE=square", "-u", "root", "-w", "/", f"oci:{layout}", "--", "a", "b")
    assert done.succeeded().text == "a b green square / root\n"
    msb("rmi", "made").succeeded()


def test_a_directory_is_a_root_file_system(msb: Msb, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc" / "motto").write_text("packed\n")
    program = root / "bin" / "busybox"
    program.write_bytes(busybox_program())
    program.chmod(0o755)
    (root / "bin" / "cat").symlink_to("busybox")
    before = sorted((path, path.lstat().st_mtime_ns) for path in root.rglob("*"))
    done = msb("run", "./rootfs", "--", "cat", "/etc/motto", cwd=tmp_path)
    assert done.succeeded().text == "packed\n"
    assert sorted((path, path.lstat().st_mtime_ns) for path in root.rglob("*")) == before


def test_quiet_says_nothing_of_its_own(msb: Msb) -> None:
    done = msb.run("true", options=["-q"])
    assert (done.code, done.out, done.err) == (0, b"", b"")


def test_no_stdin_leaves_the_callers_input_alone(msb: Msb, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"for the next command\n")
    with kept.open("rb", buffering=0) as file:
        done = msb("run", "--no-stdin", "busybox", "--", "cat", stdin=file)
        assert (done.succeeded().out, file.read()) == (b"", b"for the next command\n")


def test_a_name_keeps_the_sandbox_and_what_it_wrote(msb: Msb, host: Host) -> None:
    msb.run("sh", "-c", "echo kept > /root/note", options=["--name", "dev"]).succeeded()
    assert (host.rows(), host.running(), len(host.directories())) == (["dev"], [], 1)

    assert "msb rm dev" in msb.run("true", options=["--name", "dev"]).failed(125)
    assert len(host.directories()) == 1, "the second run must leave nothing"

    msb("start", "dev").succeeded()
    assert msb("exec", "dev", "--", "cat", "/root/note").succeeded().text == "kept\n"
    msb("stop", "dev").succeeded()
    msb("rm", "dev").succeeded()


def test_a_sandbox_without_a_name_is_gone_when_its_command_is(msb: Msb, host: Host) -> None:
    before = host.tree()
    msb.run("sh", "-c", "echo lost > /root/note").succeeded()
    # Promised is more than the two seconds after a crash: when msb has ended, it is gone.
    assert host.leftovers() == []
    assert sorted(set(host.tree()) ^ set(before)) == []
    assert host.rows() == []
    assert msb.run("cat", "/root/note").code == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "naïve", "n" * 300, "a b", "a\nb"])
def test_a_name_that_cannot_be_one_is_refused_before_anything_starts(msb: Msb, host: Host, name: str) -> None:
    # L05: names with a slash, dots, other alphabets, 300 bytes
    before = host.tree()
    assert "name" in msb("run", f"--name={name}", "busybox", "--", "true").failed(2)
    assert host.tree() == before


@pytest.mark.parametrize("name", ["A.b_c-9", "0" * 63])
def test_a_name_that_can_be_one_works(msb: Msb, host: Host, name: str) -> None:
    msb.run("true", options=["--name", name]).succeeded()
    assert host.rows() == [name]
    assert msb("rm", name).succeeded().text == name + "\n"


@pytest.mark.parametrize(
    "options",
    [["-m", "lots"], ["-m", "1M"], ["-c", "0"], ["--timeout", "soon"], ["-e", "=x"], ["-H", "a b"]],
    ids=" ".join,
)
def test_an_option_that_cannot_be_is_one_error_with_a_hint(msb: Msb, host: Host, options: list[str]) -> None:
    before = host.tree()
    msb.run("true", options=options).failed(2)
    assert host.tree() == before


def test_an_option_that_does_not_exist_is_a_usage_error(msb: Msb) -> None:
    assert msb("run", "--no-such-option", "busybox").code == 2


def test_standard_input_that_cannot_be_read_is_an_empty_one(msb: Msb) -> None:
    with Path("/proc/self/mem").open("rb", buffering=0) as file:  # the first read fails with EIO
        done = msb.run("sh", "-c", "cat; echo still", stdin=file)
    assert done.succeeded().text == "still\n"
