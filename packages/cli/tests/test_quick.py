"""What is understood without the parser is what the parser understands."""

import inspect
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox_cli import images, lifecycle, ping, registry, run, sandboxes
from microsandbox_cli.app import app
from microsandbox_cli.network_options import DnsMode, NetNames, NetworkPreset
from microsandbox_cli.options import Compression, Format, JsonFormat, Pull, Security, Vmm
from microsandbox_cli.quick import (
    COMMANDS,
    COMPRESSION,
    DNS,
    FLAG,
    FORMAT,
    IMAGES,
    JSON,
    LIST,
    LISTINGS,
    NAMES,
    NUMBER,
    POLICY,
    PULL,
    SECURITY,
    TEXT,
    VERBS,
    VMM,
    understand,
)
from typer.models import OptionInfo

PARSER = typer.main.get_command(app)
WAYS: dict[str, Callable[..., None]] = {
    "run": run.run_new,
    "create": run.create_detached,
    "exec": run.exec_in,
    "ls": sandboxes.list_all,
    "ps": sandboxes.list_active,
    "pull": registry.pull,
    "load": images.load,
    "start": lifecycle.start,
    "stop": lifecycle.stop,
    "restart": lifecycle.restart,
    "rm": lifecycle.remove,
    "pause": lifecycle.pause,
    "resume": lifecycle.resume,
    "wait": lifecycle.wait,
    "ping": ping.ping,
    "touch": ping.touch,
    "inspect": sandboxes.inspect_all,
}
TABLES = {**COMMANDS, **LISTINGS, **VERBS, **IMAGES}


TAKES = {
    bool: FLAG, str: TEXT, str | None: TEXT, list[str] | None: LIST, int | None: NUMBER, Vmm: VMM,
    Format: FORMAT, Security: SECURITY, Pull: PULL, Path | None: TEXT, NetworkPreset | None: POLICY,
    NetNames | None: NAMES, DnsMode | None: DNS, JsonFormat: JSON, Compression | None: COMPRESSION,
}  # fmt: skip


@pytest.mark.parametrize("command", TABLES)
def test_the_table_is_that_of_the_parser(command: str) -> None:
    [function] = [
        found.callback
        for found in app.registered_commands
        if found.callback is not None and command in (found.name, found.callback.__name__)
    ]
    parsed = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
        info = hint.__metadata__[0] if hasattr(hint, "__metadata__") else None
        if isinstance(info, OptionInfo):
            # In `Annotated[...]` Typer takes the first name for what is elsewhere the default.
            for option in (info.default, *(info.param_decls or ())):
                parsed[option] = (name, TAKES.get(hint.__origin__))
    for option in ("--log-level", "--conf"):  # the parser's alone
        parsed.pop(option, None)
    assert TABLES[command] == parsed


def test_the_vmms_are_those_of_the_parser() -> None:
    for vmm in Vmm:
        assert understand(["run", "--vmm", vmm, "busybox"]) is not None
    for profile in Security:
        assert understand(["run", "--security", profile, "busybox"]) is not None
    for preset in NetworkPreset:
        assert understand(["run", "--network-policy", preset, "busybox"]) is not None
    for names in NetNames:
        assert understand(["run", "--net-names", names, "busybox"]) is not None
    for mode in DnsMode:
        assert understand(["run", "--dns-mode", mode, "busybox"]) is not None
    for form in Format:
        assert understand(["ls", "--format", form]) is not None


def _call_of(command: str, action: Callable[[], object]) -> dict[str, Any] | None:
    """The arguments with which the command's function is called; None if it is not."""
    calls: list[dict[str, Any]] = []
    signature = inspect.signature(WAYS[command])

    def record(*words: Any, **values: Any) -> None:
        bound = signature.bind(*words, **values)
        bound.apply_defaults()
        calls.append({name: list(v) if isinstance(v, tuple) else v for name, v in bound.arguments.items()})

    with patch.object(sys.modules[WAYS[command].__module__], WAYS[command].__name__, record):
        action()
    return calls[0] if calls else None


def _quickly(arguments: Sequence[str]) -> dict[str, Any] | None:
    def act() -> None:
        if (meant := understand(arguments)) is not None:
            meant()

    return _call_of(arguments[0], act)


def _parsed(arguments: Sequence[str]) -> dict[str, Any] | None:
    def act() -> None:
        # Whatever the parser refuses it refuses by raising; then the function is not called.
        with suppress(Exception, SystemExit), redirect_stdout(io.StringIO()):
            PARSER(list(arguments), standalone_mode=False)

    return _call_of(arguments[0], act)


WORDS = st.sampled_from(
    [
        "busybox",
        "sh",
        "-c",
        "echo $HOME",
        "--",
        "-",
        "-x",
        "--no",
        "",
        "a=b",
        "=",
        "1",
        "007",
        "-1",
        "1_0",
        "x",
    ]
)
OPTIONS = st.sampled_from([*dict.fromkeys(o for table in TABLES.values() for o in table), "--help", "-qc"])


@settings(deadline=None)
@given(
    st.sampled_from(list(TABLES)),
    st.lists(
        st.one_of(
            WORDS.map(lambda word: [word]),
            OPTIONS.map(lambda option: [option]),
            st.tuples(OPTIONS, WORDS).map(list),
            st.tuples(OPTIONS, WORDS).map(lambda pair: ["=".join(pair)]),
            st.text(max_size=4).map(lambda word: [word]),
        ),
        max_size=8,
    ),
)
def test_whatever_is_understood_is_what_the_parser_understands(command: str, parts: list[list[str]]) -> None:
    arguments = [command, *(word for part in parts for word in part)]
    found = _quickly(arguments)
    if found is not None:
        assert found == _parsed(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "busybox"],
        ["run", "-q", "-m", "1G", "-e", "A=1", "-e", "B", "busybox", "--", "sh", "-c", "exit 3"],
        ["run", "busybox", "--cpus=2", "--vmm", "qemu", "--entrypoint", "", "--timeout=5s", "true"],
        ["create", "--name", "dev", "busybox"],
        ["exec", "-u", "1000", "dev", "--", "id", "-u"],
        ["run", "--label", "a=b", "--replace", "--replace-with-grace", "30s", "-n", "dev", "busybox"],
        ["run", "-p", "8080:80", "--port=5353:53/udp", "--network-policy", "none", "busybox"],
        ["create", "-n", "dev", "--net-rule", "allow@any", "--max-connections", "9", "busybox"],
        ["ls"],
        ["ls", "--running", "--label", "a", "--label=b=c", "-q", "--format", "json"],
        ["ps", "-a"],
        ["pull", "-q", "busybox", "alpine"],
        ["pull", "--pull=if-missing", "--platform", "linux/amd64", "--insecure", "--complete", "busybox"],
        ["load", "image.tar"],
        ["load", "-q", "-i", "image.tar", "--tag=mine:1", "--compression", "lz4"],
        ["load", "--input", "image.tar"],
        ["load", "-i", "./a//b"],
        ["load"],
        ["ping", "dev"],
        ["wait", "dev", "db"],
        ["wait", "dev", "--session", "5"],
        ["inspect", "--format", "json", "dev"],
        ["stop", "-t", "5s", "dev"],
        ["stop", "--force", "--label=team=a"],
        ["restart", "--cold", "dev"],
        ["rm", "-f", "dev"],
    ],
)
def test_usual_command_lines_do_not_need_the_parser(arguments: list[str]) -> None:
    found = _quickly(arguments)
    assert found is not None
    assert found == _parsed(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["ls", "dev"], ["ls", "--format", "yaml"], ["ps", "-aq"],
        ["run"], ["run", "--help"], ["run", "busybox", "--nonsense"], ["run", "-m"], ["run", ""],
        ["run", "-c", "two", "busybox"], ["create", "busybox"], ["create", "-n", "a", "busybox", "true"],
        ["ping", "--help"], ["stop", "-ft", "5s", "dev"], ["rm", "--all"],
        ["pull"], ["pull", "-q"], ["pull", "--pull", "sometimes", "busybox"], ["load", "a.tar", "b.tar"],
        ["load", "--input", ""], ["load", "-i="], ["load", ""],
        ["run", "--log-level", "debug", "busybox"], ["run", "-qe", "A", "busybox"], ["--version", "run", "x"],
    ],
)  # fmt: skip
def test_the_rest_is_the_parsers(arguments: list[str]) -> None:
    assert understand(arguments) is None


def test_a_start_does_not_import_the_parser(tmp_path: Any) -> None:
    script = "import sys; sys.argv = 'msb run -q --pull never no-such-image -- true'.split()\n"
    script += "from microsandbox_cli.__main__ import main\n"
    script += "try: main()\nexcept SystemExit as end: print(end.code, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"MSB_HOME": str(tmp_path)}
    )
    code, *loaded = done.stdout.split()
    assert code == "125", done.stderr
    assert {"typer", "asyncio", "sqlite3", "subprocess", "ssl", "urllib.parse"} & set(loaded) == set()


def test_a_ping_does_not_import_the_parser_nor_a_loop(tmp_path: Any) -> None:
    loaded = _loaded("msb ping dev", tmp_path)
    assert {"typer", "asyncio", "pydantic", "subprocess", "ssl", "inspect"} & loaded == set()


def test_a_pull_does_not_import_the_parser(tmp_path: Any) -> None:
    loaded = _loaded("msb pull -q 127.0.0.1:1/nothing", tmp_path)
    heavy = {"typer", "asyncio", "pydantic", "sqlite3", "subprocess", "concurrent", "tomllib", "httpx"}
    assert heavy & set(loaded) == set()


def _loaded(line: str, home: Path) -> set[str]:
    """The modules that a command line which fails with 1 has imported."""
    script = f"import sys; sys.argv = {line!r}.split()\n"
    script += "from microsandbox_cli.__main__ import main\n"
    script += "try: main()\nexcept SystemExit as end: print(end.code, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "MSB_HOME": str(home)},
    )
    code, *loaded = done.stdout.split()
    assert code == "1", done.stderr
    return set(loaded)
