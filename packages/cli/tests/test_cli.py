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
    "run", "create", "exec", "start", "stop", "rm", "ls", "cp", "load", "images", "rmi", "setup", "doctor",
    "ps", "inspect", "restart", "wait", "ping", "logs", "pause", "resume", "fork",
    "image ls", "image inspect", "image rm", "df", "prune", "completion", "install", "uninstall",
    "self update", "self uninstall", "conf schema",
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
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imag"], "no such command 'imag' | did you mean 'image', 'images'? see msb --help"),
        (["image", "inspct"], "no such command 'inspct' | did you mean 'inspect'? see msb image --help"),
        (["run", "--nmae", "x"], "msb run has no option --nmae | did you mean --name? see msb run --help"),
        (["run", "-c", "two", "x"], "invalid value for '--cpus' / '-c': 'two' is not a whole number"
         " | see msb run --help"),
        (["ls", "--format", "x"], "invalid value for '--format': 'x' is not one of 'table', 'json'"
         " | see msb ls --help"),
        (["exec"], "missing argument 'NAME' | see msb exec --help"),
        (["inspect"], "no sandbox was named | msb inspect NAME..., or msb inspect --label KEY=VALUE"),
        (["install"], "invalid value for IMAGE: name an image, or use --list | see msb install --help"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named_with_what_is_like_it(arguments: list[str], said: str) -> None:
    error, hint = said.split(" | ")
    assert msb(*arguments).stderr == f"error: {error}\nhint: {hint}\n"


@pytest.mark.parametrize("arguments", [[], ["image"], ["self"], ["conf"]])
def test_nothing_to_do_is_answered_with_the_help(arguments: list[str]) -> None:
    done = msb(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Usage: {' '.join(['msb', *arguments])} ")


def test_the_help_says_what_the_exit_codes_mean() -> None:
    assert "128+N if signal N killed it" in " ".join(msb("exec", "--help").stdout.split())
    assert "1 some of it failed" in " ".join(msb("stop", "--help").stdout.split())


def test_no_listing_has_colours_or_asks_for_a_terminal(tmp_path: Path) -> None:
    for arguments in (
        ["ls"],
        ["ps"],
        ["images"],
        ["df"],
        ["install", "--list"],
        ["--help"],
        ["run", "--help"],
    ):
        assert "\x1b" not in msb(*arguments, home=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "named", "code"),
    [
        (["run", "-m", "lots", "busybox"], "memory", 2),
        (["run", "-c", "0", "busybox"], "cpus", 2),
        (["run", "--timeout", "soon", "busybox"], "--timeout", 2),
        (["run", "--name", "../x", "busybox"], "name", 2),
        (["run", "-H", "a.b", "busybox"], "hostname", 2),
        (["run", "-e", "=x", "busybox"], "--env", 2),
        (["run", "Not A Reference"], "reference", 125),
        (["run", "./nowhere"], "nowhere", 125),
        (["run", "nothing-like-it"], "nothing-like-it", 125),
        (["image", "inspect", "nothing-like-it"], "nothing-like-it", 125),
    ],
)
def test_bad_values_get_one_line_that_names_them(
    tmp_path: Path, arguments: list[str], named: str, code: int
) -> None:
    done = msb(*arguments, home=tmp_path)
    assert done.returncode == code
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert named in first
    assert all(line.startswith("hint: ") for line in rest)
    assert len(rest) <= 1


@pytest.mark.parametrize(
    "words",
    [
        ("load", "-i", ""),
        ("load", "--input="),
        ("load", ""),
        ("save", "-o", "", "busybox"),
        ("image", "export", "-o", "", "busybox"),
        ("run", "--conf", "", "busybox"),
        ("run", "--conf=", "busybox", "--", "true"),
        ("create", "--conf", "", "-n", "dev", "busybox"),
        ("cp", "", "dev:/x"),
        ("cp", "dev:/x", ""),
        ("diff", "dev", "--mount", ""),
        ("apply", "dev", ""),
        ("discard", "dev", "a", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_this_directory_nor_everything(words: tuple[str, ...], tmp_path: Path) -> None:
    done = msb(*words, home=tmp_path / "home")
    first, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert first.startswith("error: ")
    assert first.endswith("the path is empty")
    assert hint.startswith("hint: ")
    assert not (tmp_path / "home").exists()


def test_listings_of_an_empty_home(tmp_path: Path) -> None:
    assert json.loads(msb("ls", "--format", "json", home=tmp_path).stdout) == []
    assert json.loads(msb("images", "--format", "json", home=tmp_path).stdout) == []
    assert msb("ls", "-q", home=tmp_path).stdout == ""
    assert msb("ls", home=tmp_path).stdout.startswith("NAME")


def test_storage_of_a_home_that_does_not_exist(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shown = json.loads(msb("df", "--format", "json", home=home).stdout)
    assert (shown["home"], shown["size"], shown["reclaimable"]) == (str(home), 0, 0)
    assert [entry["kind"] for entry in shown["kinds"]] == [
        "images", "templates", "kernels", "boot_disks", "uppers", "records",
        "running_sandboxes", "stopped_sandboxes", "volumes", "leftovers", "other",
    ]  # fmt: skip
    assert all(set(entry) == {"kind", "count", "size", "reclaimable"} for entry in shown["kinds"])
    assert msb("df", home=home).stdout.splitlines()[-1].split() == ["total", "0", "B", "0", "B"]
    pruned = json.loads(msb("prune", "--all", "--format", "json", home=home).stdout)
    assert pruned == {"dry_run": False, "removed": [], "size": 0}
    assert msb("prune", "-q", home=home).stdout == ""
    assert not home.exists()


def test_prune_names_what_it_removed_and_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    leftover = tmp_path / "sandboxes" / "0123456789abcdef" / "upper.ext4"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"x" * 5000)
    row = ["sandbox", "0123456789abcdef"]
    done = msb("prune", "--dry-run", home=tmp_path)
    assert done.stdout.splitlines()[1].split()[:2] == row
    assert done.stderr == "dry run: nothing was changed\n"
    assert leftover.exists()
    assert msb("prune", "--dry-run", "-q", home=tmp_path).stderr == ""
    header, removed, total = msb("prune", home=tmp_path).stdout.splitlines()
    assert header.split() == ["KIND", "NAME", "SIZE"]
    assert removed.split()[:2] == row
    assert total.split()[0] == "total"
    assert total.split()[-2:] == removed.split()[-2:]
    assert not leftover.parent.exists()


@pytest.mark.parametrize("command", ["df", "prune"])
def test_a_home_that_cannot_be_read_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "cache").symlink_to("cache")
    done = msb(command, home=tmp_path)
    assert done.returncode == 125
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert str(tmp_path / "cache") in done.stderr


def test_debug_shows_where_an_error_came_from_and_changes_nothing_else(tmp_path: Path) -> None:
    plain, told = (
        msb(*options, "logs", "nobody", home=tmp_path) for options in ((), ("--log-level", "debug"))
    )
    assert (told.returncode, told.stdout) == (plain.returncode, plain.stdout) == (125, "")
    assert told.stderr.startswith("Traceback")
    assert told.stderr.endswith(plain.stderr)


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
