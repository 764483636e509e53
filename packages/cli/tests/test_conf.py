"""`--conf FILE`: what a file may say, what wins, and what is said about a bad one."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from microsandbox.errors import ConfigError
from microsandbox_cli import run
from microsandbox_cli.app import app
from microsandbox_cli.conf import DEPTH_LIMIT, SIZE_LIMIT, Settings, read_conf, schema
from microsandbox_cli.reference import tree

PARSER = typer.main.get_command(app)

FULL = """\
# All that there is.
image: busybox
command: [sh, -c, 'echo "$A"']
name: dev
memory: 1G
cpus: 2
env:
  A: text
  PORT: 8080
  MODE: 0755
  TIME: 20:30
  RATIO: 1.10
workdir: /srv
user: 1000:50
hostname: box
entrypoint: /bin/sh
timeout: 30s
max_duration: 5m
idle_timeout: 1m
security: restricted
rlimits: {nofile: 1024, core: "0:5"}
vmm: qemu
require_kvm: false
cold: true
stdin: false
tty: false
labels: {team: a, tier: 1}
replace_with_grace: 5s
pull: never
quiet: true
shell: /bin/ash
script: [a=true]
script_raw: [b=x]
script_path: ["c:./c"]
tmpfs: ["/cache:1M"]
volume: ["./src:/app:ro"]
stop_signal: 15
init: auto
init_arg: [x]
init_env: [A=b]
root_disk: 1G
mount_disk: ["d.img:/d:ro"]
detach: true
detach_keys: "ctrl-],."
ports: ["127.0.0.1:8080:80", 5353:53/udp, 9000]
network_policy: none
net_rule: ["allow@host:tcp:11434"]
net_names: pin-only
allow_domain: [example.com]
deny_domain: [ads.example.com]
deny_domain_suffix: [.example.net]
allow_cidr: [10.0.0.0/8]
dns_nameserver: [192.0.2.53]
dns_mode: synthetic
max_connections: 10
net_rate: ["egress:10M"]
upstream_proxy: socks5://127.0.0.1:1080
no_proxy: localhost
"""


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "dev.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def asked(command: str, *arguments: str) -> dict[str, Any]:
    """With what the command's function is called."""
    calls: list[dict[str, Any]] = []
    ways: dict[str, Callable[..., None]] = {"run": run.run_new, "create": run.create_detached}
    function = ways[command]

    def record(*words: Any, **values: Any) -> None:
        calls.append(inspect.signature(function).bind(*words, **values).arguments)

    with patch.object(run, function.__name__, record):
        PARSER([command, *arguments], standalone_mode=False)
    return calls[0]


def test_every_key_has_its_effect(tmp_path: Path) -> None:
    assert set(Settings.model_fields) - {"replace"} == {
        line.partition(":")[0] for line in FULL.splitlines() if line[0] not in "# "
    }
    found = asked("run", "--conf", write(tmp_path, FULL))
    env = ["A=text", "PORT=8080", "MODE=0755", "TIME=20:30", "RATIO=1.10"]
    wanted = {
        "image": "busybox", "command": ["sh", "-c", 'echo "$A"'], "name": "dev", "memory": "1G", "cpus": 2,
        "env": env, "workdir": "/srv", "user": "1000:50", "hostname": "box", "entrypoint": "/bin/sh",
        "timeout": "30s", "max_duration": "5m", "idle_timeout": "1m", "vmm": "qemu", "require_kvm": False,
        "cold": True, "no_stdin": True, "tty": False, "no_tty": True, "label": ["team=a", "tier=1"],
        "replace": False, "replace_with_grace": "5s", "pull": "never", "quiet": True,
        "security": "restricted", "rlimit": ["nofile=1024", "core=0:5"],
        "shell": "/bin/ash", "script": ["a=true"], "script_raw": ["b=x"],
        "script_path": ["c:./c"], "tmpfs": ["/cache:1M"],
        "volume": ["./src:/app:ro"], "stop_signal": "15", "init": "auto",
        "init_arg": ["x"], "init_env": ["A=b"], "root_disk": "1G", "mount_disk": ["d.img:/d:ro"],
        "detach": True, "detach_keys": "ctrl-],.",
    }  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    assert found["network"] == {
        "port": ["127.0.0.1:8080:80", "5353:53/udp", "9000"], "network_policy": "none",
        "net_rule": ["allow@host:tcp:11434"], "net_names": "pin-only", "allow_domain": ["example.com"],
        "deny_domain": ["ads.example.com"], "deny_domain_suffix": [".example.net"],
        "allow_cidr": ["10.0.0.0/8"], "dns_nameserver": ["192.0.2.53"], "dns_mode": "synthetic",
        "max_connections": 10, "net_rate": ["egress:10M"], "upstream_proxy": "socks5://127.0.0.1:1080",
        "no_proxy": "localhost",
    }  # fmt: skip


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    found = asked("run", "--conf", path, "-m", "2G", "-e", "A=mine", "--tty", "-n", "other", "--", "ls", "-l")
    assert (found["memory"], found["name"], found["image"]) == ("2G", "other", "busybox")
    assert (found["tty"], found["no_tty"]) == (True, False)
    assert found["env"][-1] == "A=mine"
    assert found["command"] == ["ls", "-l"]
    found = asked("run", f"--conf={path}", "alpine")
    assert (found["image"], found["command"]) == ("alpine", ["sh", "-c", 'echo "$A"'])
    found = asked("run", "--conf", path, "a", "id")
    assert (found["image"], found["command"]) == ("a", ["id"])


@pytest.mark.parametrize("command", ["run", "create"])
def test_every_option_can_be_set_in_a_file(command: str) -> None:
    (found,) = (below for below in tree().commands if below.path == command)
    names = {
        name[2:].replace("-", "_") for option in found.options for name in option.names if name[1] == "-"
    }
    elsewhere = {"label": "labels", "rlimit": "rlimits", "no_stdin": "stdin", "no_tty": "tty"}
    elsewhere["port"] = "ports"
    missing = {elsewhere.get(name, name) for name in names} - set(Settings.model_fields)
    assert missing == {"conf", "log_level", "help"}, "add a line to `Settings`, and run `make docs`"


def test_a_file_for_create(tmp_path: Path) -> None:
    found = asked("create", "--conf", write(tmp_path, "image: busybox\nname: dev\n"))
    assert (found["image"], found["name"]) == ("busybox", "dev")
    with pytest.raises(ConfigError, match=r"dev\.yaml:2: timeout: .*create has no such option"):
        asked("create", "--conf", write(tmp_path, "image: busybox\ntimeout: 1s\nname: dev\n"))


def test_a_conf_behind_the_command_is_the_guests() -> None:
    assert asked("run", "busybox", "--", "prog", "--conf", "x")["command"] == ["prog", "--conf", "x"]


def test_a_path_is_from_where_the_file_is(tmp_path: Path) -> None:
    for image, meant in (
        ("./rootfs", f"{tmp_path}/rootfs"),
        ("oci:../x", f"oci:{tmp_path}/../x"),
        ("a/b", "a/b"),
    ):
        assert read_conf(write(tmp_path, f"image: {image}")).image == meant


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("memory: 1G\nmemroy: 1G", 2, "there is no setting 'memroy'"),
        ("memory: lots", 1, "memory: 'lots' is not a size"),
        ("\n\nmemory: [1]", 3, "memory: "),
        ("memory: 512", 1, "memory: 512 is not between 64M and 1T"),
        ("env: {A: }", 1, "expected text, not nothing"),
        ("cpus: two", 1, "cpus: "),
        ("cpus: 0", 1, "not between 1 and 64"),
        ("name: ../x", 1, "cannot name a sandbox"),
        ("hostname: a.b", 1, "is not a host name"),
        ("timeout: soon", 1, "timeout: 'soon' is not a duration"),
        ("vmm: other", 1, "'auto' or 'qemu'"),
        ("cold: maybe", 1, "cold: "),
        ("rlimits: {nofiles: 1}", 1, "there is no resource 'nofiles'"),
        ("security: some", 1, "'default' or 'restricted'"),
        ("env:\n  A: 1\n  B: yes", 3, "expected text, not the boolean true"),
        ("env:\n  A: {b: c}", 2, "env.A: "),
        ("env: [A=1]", 1, "env: "),
        ("\nlabels:\n  '-': x", 2, "label: '-'"),
        ("command: ls -l", 1, "command: "),
        ("image: a\nname: b\nimage: c", 3, "image: is there twice"),
        ("env:\n  A: 1\n  A: 2", 3, "A: is there twice"),
        ("- image: a", 1, "expected settings"),
        ("just text", 1, "expected settings"),
        ("image: [", 1, "is not YAML"),
        ("a: b: c", 1, "is not YAML"),
        ("image: a\n---\nimage: b", 2, "is not YAML"),
        ("image: !!python/object/apply:os.system [id]", 1, ""),
        ("image: &a x\nname: *b", 2, "is not YAML"),
        ("x: &a [*a]", 1, ""),
        ("<<: {image: a}", 1, "a key has to be plain text"),
        ("? [a]\n: b", 1, "a key has to be plain text"),
        ("image: \x00", 1, "is not YAML"),
    ],
)  # fmt: skip
def test_one_clear_error_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_conf(path)
    shown = str(caught.value)
    assert shown.startswith(f"{path}:{line}: ")
    assert said in shown
    assert "\n" not in shown
    assert caught.value.hint


_ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{later}: &{later} [{', '.join([f'*{earlier}'] * 8)}]\n"
    for earlier, later in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "bomb",
    [
        _ALIASES,
        "[" * 20000,
        "{a: " * 9000,
        "a: &a {b: *a}",
        "#" * (SIZE_LIMIT + 1),
        "x" * SIZE_LIMIT,
        "? " * 20000,
        "- " * 20000,
    ],
    ids=["aliases", "lists", "mappings", "itself", "size", "word", "keys", "entries"],
)  # fmt: skip
def test_bombs_are_bounded(tmp_path: Path, bomb: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError):
        read_conf(write(tmp_path, bomb))
    assert time.process_time() - began < 5


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"--conf: cannot read {path}"):
            read_conf(str(path))


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert read_conf(write(tmp_path, "# nothing yet\n")).settings == Settings()


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text("abimage:&*![]{}-?#'\" \n", max_size=60)))
def test_whatever_is_in_it_there_is_one_error_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: str | bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), data)
    try:
        read_conf(path)
    except ConfigError as error:
        said = str(error)
    else:
        said = path
    assert said.startswith(path)


def test_the_schema_has_a_word_on_every_key() -> None:
    for name, entry in schema()["properties"].items():
        assert entry["description"], name


def test_the_documents_example_is_one(tmp_path: Path) -> None:
    document = (Path(__file__).parents[3] / "docs/settings.md").read_text()
    example = document.partition("```yaml\n")[2].partition("```")[0]
    conf = read_conf(write(tmp_path, example))
    assert (conf.image, conf.settings.name, conf.settings.env) == (
        "python", "dev", {"GREETING": "hello", "PORT": "8080"},
    )  # fmt: skip
    for limit in (f"{SIZE_LIMIT >> 10} KiB", f"{DEPTH_LIMIT} levels", "4,096 values"):
        assert limit in document
