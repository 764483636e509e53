"""A TAP as the link of a stack; what goes through one is in test_linux_guest.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from microsandbox_net import Policy, Stack

from tests.support.internet import WWW, Internet
from tests.support.internet_servers import ECHO
from tests.support.linux_guest import CONFIG, GATEWAY, LinuxGuest, TapGuest
from tests.support.namespace import IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR, Namespace
from tests.support.waiting import eventually, readable

HELLO = b"\0hello"


@pytest.fixture
def guest(internet: Internet) -> Iterator[LinuxGuest]:
    with LinuxGuest(internet, Policy.public_only(), direct=True) as guest:
        yield guest


def echoed(guest: LinuxGuest) -> bool:
    with guest.namespace.connect(WWW[0], ECHO) as stream:
        stream.sendall(HELLO)
        return stream.recv(len(HELLO)) == HELLO


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (IFF_TUN | IFF_NO_PI, "the link is neither a stream socket nor a TAP"),
        (
            IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
            "a TAP that has headers before its frames: make it without IFF_VNET_HDR",
        ),
    ],
    ids=["TUN", "headers"],
)
def test_an_interface_of_another_kind_is_refused(flags: int, told: str) -> None:
    namespace = Namespace()
    tap = namespace.tap("eth0", flags)
    try:
        with pytest.raises(ValueError, match=told):
            Stack(tap, CONFIG, Policy.none())
    finally:
        os.close(tap)
        namespace.close()


def test_a_device_without_an_interface_is_refused() -> None:
    with Path("/dev/net/tun").open("rb+", buffering=0) as device:
        assert_refused(device.fileno())


def test_a_file_is_refused() -> None:
    with Path(os.devnull).open("rb") as file:
        assert_refused(file.fileno())


def assert_refused(link: int) -> None:
    with pytest.raises(ValueError, match="the link is neither a stream socket nor a TAP"):
        Stack(link, CONFIG, Policy.none())


def test_the_stack_ends_with_the_interface(guest: LinuxGuest) -> None:
    assert echoed(guest)
    guest.namespace.ip("link del eth0")
    while guest.stack.running:
        guest.audit()
        readable(guest.stack.fileno(), within=60, what="the end of the stack")
    guest.stack.check()  # no fault: the other side has ended it


def test_the_interface_has_no_carrier_when_the_stack_has_ended() -> None:
    guest = TapGuest(None)
    try:
        with Stack(guest.tap, CONFIG, Policy.none()):
            assert "LOWER_UP" in guest.run("ip", "-o", "link", "show", "eth0").stdout
        # We still hold the descriptor, and with it the interface.
        assert "NO-CARRIER" in guest.run("ip", "-o", "link", "show", "eth0").stdout
    finally:
        guest.close()


def test_an_interface_that_is_down_loses_frames_and_nothing_else(guest: LinuxGuest) -> None:
    with guest.namespace.connect(WWW[0], ECHO):
        guest.namespace.ip("link set eth0 down")
        sent = guest.stack.metrics()["frames_to_guest"]
        # The stack says goodbye, to nobody.
        guest.stack.set_policy(Policy.none())
        eventually(lambda: not guest.stack.metrics()["tcp_now"], within=60, what="the flow's end")
        assert guest.stack.metrics()["frames_to_guest"] > sent
    guest.stack.set_policy(Policy.public_only())
    guest.namespace.ip(f"link set eth0 up\nroute add default via {GATEWAY[0]}\n")
    assert echoed(guest)
