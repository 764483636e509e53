"""The command lines that users know msb by: each is typed into a shell as it is printed in its documents.

A line with something that is not built yet has one answer: an error, a hint and exit code 2. Lines of what
later versions bring are listed as such, and have to be moved when it is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox import Sandbox
from microsandbox_cli.reference import Command, tree
from microsandbox_oci import ImageConfig

from tests.support.images import tar_of, write_layout
from tests.support.msb import PROGRAM, Done, Msb
from tests.support.registry_server import Registry, serving
from tests.support.terminal import Terminal

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.once]

# What the lines need of a Python and a Node.js.
_PYTHON = """\
#!/bin/sh
case $1 in
  -V) echo 'Python 3.12.0' ;;
  -c) echo "$2" | sed -n "s/^print('\\(.*\\)')$/\\1/p" ;;
  *) echo "ran $1" ;;
esac
"""
_NODE = "#!/bin/sh\necho v22.0.0\n"
_PIP = '#!/bin/sh\nshift\necho "Successfully installed $*"\n'
_RELEASE = 'NAME="Alpine Linux"\n'


def _layer() -> bytes:
    entries = []
    for name, text, mode in (
        ("usr/bin/python", _PYTHON, 0o755),
        ("usr/bin/python3", _PYTHON, 0o755),
        ("usr/bin/node", _NODE, 0o755),
        ("usr/bin/pip", _PIP, 0o755),
        ("etc/os-release", _RELEASE, 0o644),
    ):
        entry = tarfile.TarInfo(name)
        entry.mode = mode
        entries.append((entry, text.encode()))
    init = tarfile.TarInfo("sbin/init")
    init.type, init.linkname = tarfile.SYMTYPE, "/bin/busybox"
    return tar_of([*entries, (init, b"")])


class Documented:
    """A shell with msb and the images that the documents speak of."""

    def __init__(self, msb: Msb, directory: Path) -> None:
        self.msb = msb
        self.directory = directory
        (directory / "bin").mkdir()
        (directory / "bin" / "msb").symlink_to(PROGRAM)
        self.environ = {
            **msb.environ,
            "PATH": f"{msb.home / 'bin'}:{directory / 'bin'}:{os.environ['PATH']}",
            "HOME": str(directory),
            "API_KEY": "x",
        }

    def __call__(self, line: str) -> Done:
        """Type a line."""
        done = subprocess.run(
            ["bash", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, env=self.environ,
            cwd=self.directory, timeout=240,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def check(self, line: str, shown: str = "") -> None:
        """It works and prints this (a regular expression), or says that a part of it is not known."""
        if _unknown(line):
            self.refused(line)
        else:
            done = self(line).succeeded()
            assert re.search(shown, done.text, re.MULTILINE), done.text

    def refused(self, line: str) -> None:
        """The line is not understood, in good order."""
        done = self(line)
        assert (done.code, done.out) == (2, b""), (line, done)
        said = done.failed(2)
        assert re.search(r"no such command|has no option", said), said


@pytest.fixture(scope="module")
def documented(settings: dict[str, str], run_directory: Path) -> Iterator[Documented]:
    """A home of this module's; sandboxes left in it are removed."""
    directory = Path(tempfile.mkdtemp(dir=run_directory))
    msb = Msb(directory / "home", settings)
    for name, cmd in (("python", "python3"), ("node", "node"), ("alpine", "/bin/sh")):
        layout = write_layout(
            directory / name, ImageConfig(cmd=(cmd,), env=("PATH=/usr/bin:/bin",)), [_layer()]
        )
        msb("load", f"oci:{layout}", "-t", name).succeeded()
    yield Documented(msb, directory)
    msb.remove_everything()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def dev(documented: Documented) -> Iterator[Documented]:
    """With the sandbox that most lines are about."""
    documented.msb("create", "python", "--name", "dev").succeeded()
    yield documented
    documented.msb("rm", "--force", "dev")


def _unknown(line: str) -> list[str]:
    """The commands and options of a line that msb does not have."""
    words = shlex.split(line, comments=True)
    command: Command = tree()
    if "msb" not in words:
        return []
    rest = words[words.index("msb") + 1 :]
    while command.commands:
        if rest[0].startswith("-"):
            return []
        found = [below for below in command.commands if below.path.split()[-1] == rest[0]]
        if not found:
            return [rest[0]]
        command, rest = found[0], rest[1:]
    own = rest[: rest.index("--")] if "--" in rest else rest
    known = {name for option in command.options for name in option.names}
    return [word for word in own if word.startswith("-") and word.partition("=")[0] not in known]


# ------------------------------------------------------------------------------------- quick reference


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("msb --version", r"^msb \d+\.\d+\.\d+$"),
        ("msb run python -- python -c \"print('hello from sandbox')\"", r"^hello from sandbox$"),
        ('msb run -m 1G node -- node -e "console.log(process.version)"', r"^v\d+"),
        ('msb run alpine -- sh -c "uname -a && cat /etc/os-release"', r"^Linux (.*\n)+NAME=.Alpine"),
    ],
)
def test_a_one_off_command(documented: Documented, line: str, shown: str) -> None:
    documented.check(line, shown)


def test_an_interactive_shell(documented: Documented) -> None:
    with Terminal(("bash", "-c", "msb run alpine -- sh"), {**documented.environ, "PS1": "$ "}) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"tty; exit\r")
        terminal.expect(b"/dev/pts/0")
        assert terminal.finish().code == 0


def test_the_workflow(documented: Documented) -> None:
    for line, shown in (
        ("msb create python --name dev -m 1G -c 2", "^dev$"),
        ("msb exec dev -- pip install requests numpy", "^Successfully installed requests numpy$"),
        ("msb exec dev -- nproc", "^2$"),
        ("msb stop dev", "^dev$"),
        ("msb start dev", "^dev$"),
        ("msb stop dev", "^dev$"),
        ("msb rm dev", "^dev$"),
        ("msb ls -q", "^$"),
    ):
        documented.check(line, shown)


# -------------------------------------------------------------------------------- the table of options


@pytest.mark.parametrize(
    ("options", "command", "shown"),
    [
        ("--name my-sandbox", "hostname", "^my-sandbox$"),
        ("-m 512M", "true", ""),
        ("-m 1G", "true", ""),
        ("-c 2", "nproc", "^2$"),
        ("-e API_KEY=xxx", "sh -c 'echo $API_KEY'", "^xxx$"),
        ("-w /tmp", "pwd", "^/tmp$"),
        ("-t", "test -t 1", ""),
        ("-u nobody", "id -un", "^nobody$"),
        ("-H myhost", "hostname", "^myhost$"),
        ("--shell /bin/sh", "true", ""),
        ("--name again --replace", "true", ""),
        ("--name again --replace-with-grace 30s", "true", ""),
        ("--entrypoint /bin/sh", "-c 'echo $0'", "^/bin/sh$"),
        ("--max-duration 5m", "true", ""),
        ("--idle-timeout 30s", "true", ""),
        ("--tmpfs /tmp:100M", "df /tmp", "tmpfs"),
        ("-v ./project:/app", "python /app/script.py", "^ran /app/script.py$"),
        ("--init /sbin/init", "cat /proc/1/comm", "init|busybox"),
        ("--script setup='echo one\\necho two'", "setup", r"^one\r?\ntwo"),
        ("--script-raw setup=$'#!/bin/sh\\necho hi\\n'", "setup", "^hi$"),
        ("--script-path setup:./setup.sh", "setup", "^from a file$"),
        ("--network-policy none", "true", ""),
        ("--network-policy public-only", "true", ""),
        ("--network-policy nonlocal", "true", ""),
        ('--deny-domain "ads.example.com"', "true", ""),
        ('--deny-domain-suffix ".tracking.com"', "true", ""),
        ("--max-connections 10", "true", ""),
    ],
)
def test_an_option(documented: Documented, options: str, command: str, shown: str) -> None:
    (documented.directory / "setup.sh").write_text("#!/bin/sh\necho from a file\n")
    (documented.directory / "project").mkdir(exist_ok=True)
    try:
        documented.check(f"msb run {options} alpine -- {command}", shown)
    finally:
        for name in documented.msb("ls", "-q").text.split():
            documented.msb("rm", "--force", name)


def test_a_detached_run(documented: Documented) -> None:
    try:
        documented.check("msb run -d --name back alpine -- sleep 600")
    finally:
        documented.msb("rm", "--force", "back")


# ---------------------------------------------------------------------------------- managing sandboxes


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("msb ls", "^dev +running"),
        ("msb ls --running", "^dev +running"),
        ("msb ps", "^dev +running"),
        ("msb ps -a", "^dev +running"),
        ("msb inspect dev", '"name": "dev"'),
        ("msb metrics dev", ""),
        ("msb logs dev", ""),
        ("msb stop dev", "^dev$"),
        ("msb stop --force dev", "^dev$"),
        ("msb stop -t 10 dev", "^dev$"),
        ("msb rm --force dev", "^dev$"),
    ],
)
def test_managing(dev: Documented, line: str, shown: str) -> None:
    dev.check(line, shown)


def test_logs_work_after_a_stop(dev: Documented) -> None:
    dev.check("msb exec dev -- echo something", "^something$")
    dev.check("msb stop dev")
    dev.check("msb logs dev", "^something$")
    dev.check("msb ls --running", r"\ANAME[^\n]*\n\Z")
    dev.check("msb ps -a", "^dev +stopped")
    dev.check("msb rm dev", "^dev$")


def test_following_logs_ends_with_the_sandbox(dev: Documented) -> None:
    command = ["bash", "-c", "msb logs dev -f"]
    with subprocess.Popen(
        command, env=dev.environ, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as follower:
        assert follower.stdout is not None
        dev.check("msb exec dev -- echo live", "^live$")
        assert follower.stdout.readline() == b"live\n"
        dev.check("msb stop dev")
        assert follower.wait(60) == 0


# ---------------------------------------------------------------------------------------------- images


def test_images(documented: Documented) -> None:
    documented.check("msb images", "^alpine:latest ")
    documented.check("msb image ls", "^alpine:latest ")
    documented.check("msb image inspect alpine", '"reference": ".*alpine')
    archive = documented.directory / "python"
    documented.msb("load", f"oci:{archive}", "-t", "spare").succeeded()
    documented.check("msb rmi spare", "^spare$")


# ------------------------------------------------------------------------------------------ registries


@pytest.fixture
def registry(documented: Documented) -> Iterator[Registry]:
    """A registry with alpine, which stands in for the one that is asked without a name."""
    layout = documented.directory / "alpine"
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    with serving() as found:
        found.blobs = {
            f"sha256:{path.name}": path.read_bytes() for path in (layout / "blobs/sha256").iterdir()
        }
        found.add_manifest("library/alpine", "latest", entry["mediaType"], found.blobs[entry["digest"]])
        settings = documented.msb.home / "registries.toml"
        settings.write_text(f'[registry."docker.io"]\nmirrors = ["{found.domain}"]\n')
        yield found
        settings.unlink()


def test_registries(documented: Documented, registry: Registry) -> None:
    documented.check("msb pull alpine", "^alpine:latest sha256:")
    before = len(registry.requests)
    documented.check("msb run --pull always alpine")
    assert len(registry.requests) > before
    registry.authentication, registry.user = "basic", ("octocat", "a token")
    # A name of the real world would be asked there.
    here = registry.domain
    documented.check(f"echo a token | msb registry login {here} --username octocat --password-stdin")
    documented.check("msb registry ls", f"^{here} +octocat$")
    documented.check(f"msb registry logout {here}", f"^{here}$")
    with Terminal([PROGRAM, "registry", "login", here, "--username", "octocat"], documented.environ) as asked:
        asked.expect(b"password: ")
        asked.type(b"a token\n")
        asked.finish().succeeded()
    documented.check("msb registry ls -q", f"^{here}$")


# -------------------------------------------------------------------------------------------- commands


def test_volumes(documented: Documented) -> None:
    for line, shown in (
        ("msb volume create mydata", "^mydata$"),
        ("msb run -v mydata:/data alpine -- sh -c \"echo 'test' > /data/file.txt\"", ""),
        ("msb run -v mydata:/data alpine -- cat /data/file.txt", "^test$"),
        ("msb volume ls", "^mydata "),
        ("msb volume inspect mydata", '"name": "mydata"'),
        ("msb volume rm mydata", "^mydata$"),
        ("msb volume create mydata --size 5G", "^mydata$"),
        ("msb volume ls", r"^mydata +disk +5\.0 GiB"),
        ("msb volume rm mydata", "^mydata$"),
    ):
        documented.check(line, shown)


def test_commands(documented: Documented) -> None:
    try:
        documented.check("msb install python", "^python$")
        documented.check("msb install --name py python", "^py$")
        documented.check("msb install --tmp alpine", "^alpine$")
        documented.check("msb install --list", "^alpine +alpine:latest +new each time")
        documented.check("py -c \"print('as a command')\"", "^as a command$")
        documented.check("python -V", "^Python 3")
        documented.check("alpine cat /etc/os-release", "Alpine")
        documented.check("msb uninstall py", "^py$")
    finally:
        documented("msb uninstall py python alpine; msb rm -f py python")
    documented.check("msb self update --dry-run")


# --------------------------------------------------------------------------------------- not yet there

LATER = {
    "interception": ["msb run --trust-host-cas python"],
    "secrets": [
        'msb run --secret "OPENAI_API_KEY=$OPENAI_API_KEY@api.openai.com" python',
        'msb run --tls-intercept --secret "API_KEY=xxx@api.example.com" python',
    ],
    "snapshots": [
        "msb snapshot create after-setup --from baseline",
        "msb run --name worker --snapshot after-setup -- python -V",
        "msb snapshot ls",
        "msb snapshot inspect after-setup",
        "msb snapshot verify after-setup",
        "msb snapshot export after-setup /tmp/after-setup.tar.zst --with-image",
        "msb snapshot import /tmp/after-setup.tar.zst",
        "msb snapshot rm after-setup",
    ],
    "agents and editors": ["msb mcp", "msb ssh dev", "msb ssh-config dev"],
}


@pytest.mark.parametrize("line", [line for lines in LATER.values() for line in lines])
def test_what_is_not_there_yet_is_refused_in_good_order(documented: Documented, line: str) -> None:
    assert _unknown(line), "it is there now: move this line to those that work"
    documented.refused(line)


# ---------------------------------------------------------------------------------------- in a program


def test_the_snippet(documented: Documented, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in documented.msb.environ.items():
        if name.startswith("MSB_"):
            monkeypatch.setenv(name, value)

    async def main() -> None:
        async with await Sandbox.create("dev", image="python", memory="1G", cpus=2) as sandbox:
            output = await sandbox.exec("python", ["-c", "print('hi')"])
            assert (output.stdout_text, output.exit_code, output.success) == ("hi\n", 0, True)
        await Sandbox.remove("dev", force=True)

    asyncio.run(main())
