"""Published ports as they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox import ConfigError, PortBinding
from microsandbox.ports import PORT_LIMIT, parse_ports, ports_of


@pytest.mark.parametrize(
    ("text", "binding"),
    [
        ("8080:80", PortBinding(8080, 80)),
        ("8080", PortBinding(8080, 8080)),
        ("5353:53/udp", PortBinding(5353, 53, "udp")),
        ("8080:80/tcp", PortBinding(8080, 80)),
        ("0.0.0.0:80:80", PortBinding(80, 80, "tcp", "0.0.0.0")),
        ("192.0.2.1:1:65535", PortBinding(1, 65535, "tcp", "192.0.2.1")),
        ("[::1]:8080:80", PortBinding(8080, 80, "tcp", "::1")),
        ("[::1]:8080", PortBinding(8080, 8080, "tcp", "::1")),
        ("[0:0::1]:8080:80/udp", PortBinding(8080, 80, "udp", "::1")),
    ],
)
def test_a_port_is_understood(text: str, binding: PortBinding) -> None:
    assert PortBinding.parse(text) == binding
    assert PortBinding.parse(str(binding)) == binding


def test_a_range_is_as_many_ports() -> None:
    assert parse_ports(["8000-8002:9000-9002/udp"]) == tuple(
        PortBinding(8000 + n, 9000 + n, "udp") for n in range(3)
    )
    assert [port.guest_port for port in parse_ports(["8000-8001"])] == [8000, 8001]
    with pytest.raises(ConfigError, match="is a range of ports"):
        PortBinding.parse("8000-8002:9000-9002")


@pytest.mark.parametrize(
    "text",
    [
        "", "80:", ":80", "a:80", "80:80:80:80", "0:80", "80:0", "65536:80", "80:65536", "80/", "80/sctp",
        "80/TCP", "127.0.0.1:80", "::1:80:80", "[::1:80:80", "[::1]80:80", "[]:80:80", "localhost:80:80",
        "127.1:80:80", "0x7f.0.0.1:80:80", "80-79:80-79", "8000-8002:9000-9001", "8000-8002:80", "+80:80",
        "80 :80", "٨٠:80", "1-65535", "127.0.0.1::80", "[::1%lo]:80:80", "80:80/tcp/udp", "080000:80",
    ],
)  # fmt: skip
def test_what_is_no_port_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="port: ") as refusal:
        parse_ports([text])
    assert refusal.value.hint
    assert "\n" not in str(refusal.value)


@given(st.text(max_size=30))
def test_no_text_is_more_than_refused(text: str) -> None:
    try:
        found = parse_ports([text])
    except ConfigError:
        return
    assert parse_ports([str(port) for port in found]) == found


def test_a_port_of_the_host_leads_to_one_place() -> None:
    with pytest.raises(ConfigError, match=r"port: 127\.0\.0\.1:80/tcp is published twice"):
        parse_ports(["80:80", "80:81"])
    with pytest.raises(ConfigError, match="twice"):
        parse_ports(["[::1]:80:80", "[0::1]:80:81"])
    assert len(parse_ports(["80:80", "80:80/udp", "[::1]:80:80", "81:80"])) == 4


def test_there_is_a_limit() -> None:
    assert len(parse_ports([f"1-{PORT_LIMIT}"])) == PORT_LIMIT
    with pytest.raises(ConfigError, match="too many"):
        parse_ports([f"1-{PORT_LIMIT}", "60000"])


def test_programs_give_ports_as_they_like() -> None:
    bound = (PortBinding(8080, 80), PortBinding(8081, 81))
    assert ports_of({8080: 80, 8081: 81}) == bound
    assert ports_of(["8080:80", PortBinding(8081, 81)]) == bound
    with pytest.raises(ConfigError, match="70000 is not a port"):
        ports_of({70000: 80})
    with pytest.raises(ConfigError, match="not an IP address"):
        ports_of([PortBinding(80, 80, host="here")])
    for wrong in ("8080:80", [80], {"80": 80}, {80: True}):
        with pytest.raises(TypeError, match="port"):
            ports_of(wrong)  # type: ignore[arg-type]
