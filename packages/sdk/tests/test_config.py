"""What users may ask for, and how refusals read."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox._config import (
    MountConfig,
    NetworkConfig,
    SandboxConfig,
    Tmpfs,
    check_env,
    check_hostname,
    check_name,
    command_line,
    parse_cpus,
    parse_duration,
    parse_labels,
    parse_memory,
    parse_size,
    replacement_grace,
    selects,
    stored_labels,
    to_dict,
)
from microsandbox.errors import ConfigError


@pytest.mark.parametrize(
    ("given_", "mib"), [("512M", 512), ("1G", 1024), ("1.5G", 1536), ("64m", 64), ("2GiB", 2048), (256, 256)]
)
def test_memory_is_understood(given_: int | str, mib: int) -> None:
    assert parse_memory(given_) == mib


@pytest.mark.parametrize("given_", ["", "x", "-1G", "1P", "512", "63M", 0, -5, 1 << 21, "1e3M", "1G 1G"])
def test_memory_that_cannot_be_is_refused_by_name(given_: int | str) -> None:
    with pytest.raises(ConfigError, match="memory"):
        parse_memory(given_)


def test_memory_of_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="memory"):
        parse_memory(True)
    with pytest.raises(TypeError, match="memory"):
        parse_memory(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h", 3600), ("1.5", 1.5)]
)
def test_durations_are_understood(text: str, seconds: float) -> None:
    assert parse_duration(text, "timeout") == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "s", "1d", "99999999999h", "nan", "inf"])
def test_durations_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--timeout"):
        parse_duration(text, "--timeout")


@given(st.text(max_size=40))
def test_no_text_is_more_than_refused(text: str) -> None:
    for parse in (lambda t: parse_size(t, "size"), lambda t: parse_duration(t, "time")):
        with suppress(ConfigError):
            assert parse(text) >= 0


@pytest.mark.parametrize("name", ["a", "dev", "a.b-c_d", "0x", "a" * 63])
def test_names_that_are(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "-a", "_a", "a" * 64, "a" * 300, "ü", "a b", "a\n", "a\0"]
)
def test_l05_names_that_are_not(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        check_name(name)


@pytest.mark.parametrize("hostname", ["", "-a", "a-", "a.b", "a_b", "x" * 64, "ä"])
def test_host_names_that_are_not(hostname: str) -> None:
    with pytest.raises(ConfigError, match="hostname"):
        check_hostname(hostname)


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0"}])
def test_variables_that_cannot_be_set(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="env"):
        check_env(env)


def test_the_value_of_a_bad_variable_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        check_env({"TOKEN": "hunter2\0"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("cpus", [0, -1, 65])
def test_cpus_out_of_range(cpus: int) -> None:
    with pytest.raises(ConfigError, match="cpus"):
        parse_cpus(cpus)


_LIMIT = st.integers(0, 2**64 - 1)
_RATE = st.none() | _LIMIT
_NETWORKS = st.builds(
    NetworkConfig,
    preset=st.sampled_from(["none", "public-only", "nonlocal", "allow-all"]),
    rules=st.lists(st.text(max_size=9)).map(tuple),
    strict=st.booleans(),
    nameservers=st.lists(st.text(max_size=9)).map(tuple),
    dns=st.sampled_from(["resolve", "synthetic"]),
    ports=st.lists(st.tuples(st.sampled_from(["tcp", "udp"]), st.text(max_size=9), _LIMIT, _LIMIT)).map(
        tuple
    ),
    max_connections=st.none() | _LIMIT,
    rates=st.lists(st.tuples(st.just("egress"), _RATE, _RATE, _RATE, _RATE)).map(tuple),
    proxy=st.none() | st.text(max_size=9),
    no_proxy=st.text(max_size=9),
)


_MOUNTS = st.builds(
    MountConfig,
    target=st.text(max_size=9),
    source=st.text(max_size=9),
    kind=st.sampled_from(["bind", "volume", "disk"]),
    volume=st.none() | st.text(max_size=9),
    flags=st.lists(st.sampled_from(["noexec", "nodev"])).map(tuple),
    fstype=st.none() | st.text(max_size=9),
    quota=st.none() | st.integers(4096, 8 << 40),
    size=st.none() | st.integers(64 << 20, 8 << 40),
)


@given(
    st.builds(
        SandboxConfig,
        cpus=st.integers(1, 64),
        memory_mib=st.integers(64, 1 << 20),
        hostname=st.none() | st.text(max_size=9),
        env=st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9))).map(tuple),
        cold=st.booleans(),
        entrypoint=st.none() | st.lists(st.text(max_size=9)).map(tuple),
        max_duration=st.none() | st.floats(0, 1 << 31),
        idle_timeout=st.none() | st.floats(0, 1 << 31),
        stop_signal=st.none() | st.integers(1, 64),
        root_disk=st.none() | st.integers(64 << 20, 1 << 40),
        tmpfs=st.lists(st.builds(Tmpfs, size=st.none() | st.integers(0, 1 << 50), mode=st.just(0))).map(
            tuple
        ),
        rlimits=st.lists(st.tuples(st.text(max_size=9), _LIMIT, _LIMIT)).map(tuple),
        network=_NETWORKS,
        mounts=st.lists(_MOUNTS).map(tuple),
    )
)
def test_a_config_survives_the_database(config: SandboxConfig) -> None:
    assert SandboxConfig.unpack(config.pack()) == config


@given(_NETWORKS)
def test_a_network_survives_the_way_to_the_supervisor(network: NetworkConfig) -> None:
    assert NetworkConfig.unpack(network.pack()) == network


def test_a_record_from_before_there_was_a_network_reads_and_is_as_short_as_then() -> None:
    packed = SandboxConfig().pack()
    assert b"network" not in packed
    assert b"mounts" not in packed
    assert SandboxConfig.unpack(packed).network == NetworkConfig()


def test_the_password_of_a_proxy_is_not_shown() -> None:
    config = SandboxConfig(network=NetworkConfig(proxy="socks5://me:hush@hush@proxy.example:1080"))
    assert "hush" not in repr(config)
    assert "hush" not in repr(to_dict(config))
    assert config.network.shown_proxy == "socks5://me:***@proxy.example:1080"


def test_bytes_that_are_not_utf8_survive_the_database() -> None:
    config = SandboxConfig(env=(("A", b"\xff\xfe".decode("utf-8", "surrogateescape")),))
    assert SandboxConfig.unpack(config.pack()) == config


@pytest.mark.parametrize(
    ("config", "arguments", "expected"),
    [
        (SandboxConfig(), (), ("/entry", "default")),
        (SandboxConfig(), ("given",), ("/entry", "given")),
        (SandboxConfig(entrypoint=("/mine",)), (), ("/mine",)),
        (SandboxConfig(entrypoint=("/mine",)), ("given",), ("/mine", "given")),
        (SandboxConfig(entrypoint=()), ("given",), ("given",)),
        (SandboxConfig(entrypoint=()), (), ()),
        (SandboxConfig(cmd=("other",)), (), ("/entry", "other")),
    ],
)
def test_the_command_is_entrypoint_and_arguments_or_cmd(
    config: SandboxConfig, arguments: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert command_line(config, ("/entry",), ("default",), arguments) == expected


def test_labels_are_sorted_and_the_last_of_a_key_counts() -> None:
    assert parse_labels(["b=2", "a=1", "b=3=4", "c="]) == (("a", "1"), ("b", "3=4"), ("c", ""))


@pytest.mark.parametrize(
    "given", ["a", "=1", "a b=1", "-a=1", "a-=1", "a=\0", "a=\udcff", "k" * 129 + "=1", "a=" + "x" * 4097]
)
def test_a_label_that_cannot_be_is_named(given: str) -> None:
    with pytest.raises(ConfigError, match="label") as caught:
        parse_labels([given])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], True),
        (["a"], True),
        (["a=1"], True),
        (["a=2"], False),
        (["a="], False),
        (["a", "b"], True),
        (["a", "c"], False),
        (["b="], True),
    ],
)
def test_all_labels_that_are_wanted_have_to_be_there(wanted: list[str], found: bool) -> None:
    assert selects(wanted, [("a", "1"), ("b", "")]) is found


def test_what_has_no_name_replaces_nothing() -> None:
    assert replacement_grace("dev", False, None) is None
    assert replacement_grace("dev", True, None) == 0
    assert replacement_grace("dev", False, "30s") == 30
    with pytest.raises(ConfigError, match="no name"):
        replacement_grace(None, True, None)


@pytest.mark.parametrize("packed", [b"", b"\x80", b"\xc1", b"\x01", b"\x81\xa6labels\x01"])
def test_a_stored_configuration_without_labels_has_none(packed: bytes) -> None:
    assert stored_labels(packed) == {}


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        (None, None),
        ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
        ("http://me:hu:sh@p:1", "http://me:***@p:1"),
        ("socks5://me:hu/s@h@p:1", "socks5://me:***@p:1"),
        ("http://hush@p:1", "http://***@p:1"),
        ("http://:hush@p:1", "http://:***@p:1"),
    ],
)
def test_a_proxy_is_shown_without_what_is_secret(proxy: str | None, shown: str | None) -> None:
    assert NetworkConfig(proxy=proxy).shown_proxy == shown
