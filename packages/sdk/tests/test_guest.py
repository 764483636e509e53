"""What a sandbox is given inside: how it is written, and what is refused."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox import Init
from microsandbox._config import SandboxConfig, Tmpfs
from microsandbox._guest import (
    SCRIPTS_LIMIT,
    configure_parameters,
    init_parameters,
    is_init,
    parse_init,
    parse_root_disk,
    parse_scripts,
    parse_signal,
    parse_tmpfs,
    split_tmpfs,
    unescape,
    with_options,
)
from microsandbox.errors import ConfigError
from microsandbox_oci import ImageConfig


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\nb", "a\nb"),
        (r"\t\r\"\'", "\t\r\"'"),
        (r"\\n", r"\n"),
        (r"grep '\d\.'", r"grep '\d\.'"),
        ("end\\", "end\\"),
        ("", ""),
    ],
)
def test_escapes_are_decoded_and_other_backslashes_stay(written: str, meant: str) -> None:
    assert unescape(written) == meant


def test_a_snippet_is_a_program_of_the_shell(tmp_path: Path) -> None:
    (tmp_path / "setup").write_bytes(b"\x7fELF\xff")
    raw = "#!/bin/sh\necho \udcff\\n"
    found = parse_scripts([r"a=echo 1=2\necho"], [f"b={raw}"], [f"c:{tmp_path}/setup"], "/bin/ash")
    assert found == {
        "a": b"#!/bin/ash\necho 1=2\necho\n",
        "b": b"#!/bin/sh\necho \xff\\n",
        "c": b"\x7fELF\xff",
    }
    assert parse_scripts(["a=x"], [], [], None) == {"a": b"#!/bin/sh\nx\n"}


def test_scripts_of_the_sdk_are_text_bytes_or_whole_programs() -> None:
    scripts: dict[str, str | bytes] = {"a": "echo a\n", "b": "#!/usr/bin/env python3\n", "c": b"\xff"}
    assert with_options(SandboxConfig(), shell="/bin/bash", scripts=scripts).scripts == (
        ("a", "#!/bin/bash\necho a\n"),
        ("b", "#!/usr/bin/env python3\n"),
        ("c", "\udcff"),
    )


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "ä" * 128])
def test_a_script_is_named_like_a_file(name: str) -> None:
    with pytest.raises(ConfigError, match="script"):
        with_options(SandboxConfig(), scripts={name: "true"})


def test_scripts_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse_scripts(["a=x"], ["a=y"], [], None)
    with pytest.raises(ConfigError, match="has no body"):
        parse_scripts(["a"], [], [], None)
    with pytest.raises(ConfigError, match="names no file"):
        parse_scripts([], [], ["a"], None)
    with pytest.raises(ConfigError, match=r"'a' cannot be read from .*: No such file"):
        parse_scripts([], [], [f"a:{tmp_path}/nothing"], None)
    with pytest.raises(ConfigError, match="1 MiB together"):
        with_options(SandboxConfig(), scripts={"a": b"x" * SCRIPTS_LIMIT, "b": b"x"})
    with pytest.raises(ConfigError, match="too many"):
        with_options(SandboxConfig(), scripts={str(number): "" for number in range(65)})


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/cache", Tmpfs("/cache")),
        ("/cache:100M", Tmpfs("/cache", 100 << 20)),
        ("//a/./b/:size=1G,mode=700,ro,noexec,nosuid,nodev", Tmpfs("/a/b", 1 << 30, 0o700, True, True)),
    ],
)
def test_a_tmpfs_is_understood(text: str, mount: Tmpfs) -> None:
    assert parse_tmpfs(text) == mount


@pytest.mark.parametrize(
    "text",
    ["", "/", "a", "/a/../b", "/proc", "/proc/x", "/sys/y", "/dev/shm", "/.msb/scripts", "/a\0b",
     "/a:0", "/a:1K", "/a:huge", "/a:mode=8", "/a:mode=77777", "/a:uid=0", "/a:100M,exec,suid"],
)  # fmt: skip
def test_a_tmpfs_that_cannot_be_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="tmpfs"):
        parse_tmpfs(text)


def test_mounts_come_in_an_order_in_which_none_hides_another() -> None:
    config = with_options(SandboxConfig(), tmpfs={"/a/b": None, "/a": 16, "/c": "1M,ro"})
    assert config.tmpfs == (Tmpfs("/a", 16 << 20), Tmpfs("/a/b"), Tmpfs("/c", 1 << 20, read_only=True))
    with pytest.raises(ConfigError, match="given twice"):
        with_options(SandboxConfig(), tmpfs={"/a": None, "/a/": None})
    with pytest.raises(ConfigError, match="given twice"):
        split_tmpfs(["/a", "/a:1M"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        (9, 9),
        ("15", 15),
        ("SIGRTMIN+3", 37),
        ("RTMIN", 34),
        ("SIGRTMAX-1", 63),
    ],
)
def test_signals_are_understood(text: str | int, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "SIGFOO", "SIGSTOP", "SIGRTMIN+31", "SIG_DFL", "1e1"])
def test_what_is_no_signal_to_stop_with(text: str) -> None:
    with pytest.raises(ConfigError, match="stop_signal"):
        parse_signal(text)


@given(st.text(max_size=30))
def test_no_text_is_more_than_refused(text: str) -> None:
    for parse in (parse_tmpfs, parse_signal, parse_root_disk, unescape):
        with suppress(ConfigError):
            parse(text)


def test_the_size_of_the_root_disk() -> None:
    assert parse_root_disk("16G") == 16 << 30
    assert parse_root_disk(512) == 512 << 20
    for wrong in ("1M", "2048G", 63, "x"):
        with pytest.raises(ConfigError, match="root_disk"):
            parse_root_disk(wrong)
    with pytest.raises(TypeError):
        parse_root_disk(True)


def test_what_belongs_to_an_init_needs_one() -> None:
    assert parse_init(None, [], {}) is None
    assert parse_init("auto", ["a"], {"B": "c"}) == Init("auto", ["a"], {"B": "c"})
    with pytest.raises(ConfigError, match="--init-arg is given without --init"):
        parse_init(None, ["a"], {})
    with pytest.raises(ConfigError, match="--init-env is given without --init"):
        parse_init(None, [], {"A": "b"})
    with pytest.raises(ConfigError, match="init"):
        with_options(SandboxConfig(), init="sbin/init")
    with pytest.raises(ConfigError, match="restricted profile"):
        with_options(SandboxConfig(security="restricted"), init="auto")
    with pytest.raises(ConfigError, match="NUL"):
        with_options(SandboxConfig(), init=Init(args=("a\0",)))


def test_a_shell_is_a_path() -> None:
    assert with_options(SandboxConfig(), shell="/bin/bash").shell == "/bin/bash"
    with pytest.raises(ConfigError, match="shell"):
        with_options(SandboxConfig(), shell="bash")


# -------------------------------------------------------------------------------------- what agentd is told


def test_nothing_is_told_that_was_not_asked() -> None:
    assert configure_parameters(SandboxConfig(), ImageConfig()) == {}
    assert configure_parameters(SandboxConfig(), ImageConfig(stop_signal="SIGTERM", working_dir="/")) == {}
    assert init_parameters(SandboxConfig(), ImageConfig()) is None


def test_everything_is_told_also_after_the_database() -> None:
    config = with_options(
        SandboxConfig(env=(("A", "1"),)), scripts={"s": b"\xff"}, tmpfs={"/a": 1}, stop_signal="SIGINT",
        init=Init("/sbin/init", ("x",), {"B": "2"}),
    )  # fmt: skip
    image = ImageConfig(working_dir="/srv", stop_signal="SIGQUIT", env=("A=0", "C=3"))
    for known in (config, SandboxConfig.unpack(config.pack())):
        assert configure_parameters(known, image) == {
            "workdir": b"/srv",
            "tmpfs": [{"path": b"/a", "size": 1 << 20, "mode": 0o1777, "read_only": False, "noexec": False}],
            "scripts": [[b"s", b"\xff"]],
            "stop_signal": 2,
        }
        told = init_parameters(known, image)
        assert told is not None
        assert (told["path"], told["args"]) == (b"/sbin/init", [b"x"])
        assert {b"A=1", b"B=2", b"C=3", b"container=microsandbox"} < set(told["env"])


def test_the_image_has_a_say_in_the_signal() -> None:
    assert configure_parameters(SandboxConfig(), ImageConfig(stop_signal="SIGRTMIN+3")) == {"stop_signal": 37}
    assert configure_parameters(SandboxConfig(), ImageConfig(stop_signal="nonsense")) == {}


def test_an_images_command_that_is_its_init_is_not_run_twice() -> None:
    config = with_options(SandboxConfig(), init="auto")
    assert is_init(config, "/sbin/init")
    assert not is_init(config, "/bin/busybox")
    assert not is_init(SandboxConfig(), "/sbin/init")
    assert is_init(with_options(SandboxConfig(), init="/sbin/tini"), "/sbin/tini")
