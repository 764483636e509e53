"""The command line without a VM: help, versions, usage errors, listings."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from microsandbox_cli.listing import age, human_size, print_table

PROJECT = Path(__file__).parents[1]
COMMANDS = [
    "run", "create", "exec", "start", "stop", "rm", "ls", "load", "images", "rmi", "setup", "doctor",
    "image ls", "image inspect", "image rm",
]  # fmt: skip


def msb(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "MSB_HOME": str(home or "/nonexistent/msb")}
    return subprocess.run(
        [sys.executable, "-m", "microsandbox_cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def test_the_version_is_the_packages() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    done = msb("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"msb {version}\n", "")


def test_the_version_needs_next_to_nothing() -> None:
    script = "import sys; sys.argv = ['msb', '--version']\n"
    script += "from microsandbox_cli.__main__ import main\n"
    script += "try: main()\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    loaded = set(done.stderr.split())
    assert {"typer", "asyncio", "microsandbox", "microsandbox_core"} & loaded == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = msb(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: msb {command}" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_help_lists_every_command() -> None:
    listed = msb("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command.split()[0]}\b", listed, re.MULTILINE), command


@pytest.mark.parametrize(
    "arguments", [["run"], ["nonsense"], ["run", "--nonsense", "x"], ["create", "busybox"], ["exec"]]
)
def test_usage_errors_exit_2_on_stderr(arguments: list[str]) -> None:
    done = msb(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "-m", "lots", "busybox"], "memory"),
        (["run", "-c", "0", "busybox"], "cpus"),
        (["run", "--timeout", "soon", "busybox"], "--timeout"),
        (["run", "--name", "../x", "busybox"], "name"),
        (["run", "-H", "a.b", "busybox"], "hostname"),
        (["run", "-e", "=x", "busybox"], "--env"),
        (["run", "Not A Reference"], "reference"),
        (["run", "./nowhere"], "nowhere"),
        (["run", "nothing-like-it"], "nothing-like-it"),
        (["image", "inspect", "nothing-like-it"], "nothing-like-it"),
    ],
)
def test_bad_values_get_one_line_that_names_them(tmp_path: Path, arguments: list[str], named: str) -> None:
    done = msb(*arguments, home=tmp_path)
    assert done.returncode == 125
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert named in first
    assert all(line.startswith("hint: ") for line in rest)
    assert len(rest) <= 1


def test_listings_of_an_empty_home(tmp_path: Path) -> None:
    assert json.loads(msb("ls", "--format", "json", home=tmp_path).stdout) == []
    assert json.loads(msb("images", "--format", "json", home=tmp_path).stdout) == []
    assert msb("ls", "-q", home=tmp_path).stdout == ""
    assert msb("ls", home=tmp_path).stdout.startswith("NAME")


def test_removing_what_is_not_there_fails_and_goes_on(tmp_path: Path) -> None:
    done = msb("rm", "one", "two", home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 2
    assert msb("rm", "--force", "one", home=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (1e6, "11d")]
)
def test_ages_read_well(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_a05_names_in_tables_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [("\x1b]52;c;x\x07\x9b31m",)])
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert "\x9b" not in out
