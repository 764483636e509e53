"""A round trip to the agent of a sandbox without an event loop: what `msb ping` takes is mostly imports."""

from __future__ import annotations

import os
import socket
from time import perf_counter, sleep

from microsandbox_core.channel import (
    ChannelError,
    Ended,
    Failed,
    HandshakeTimeout,
    HelloReceived,
    HostConnection,
)
from microsandbox_core.unix_socket import connect_unix

from microsandbox import _life
from microsandbox._directory import SandboxDirectory
from microsandbox.errors import NotRunning, paused

_HANDSHAKE_TIMEOUT = 10.0  # seconds, as in `microsandbox_core.agent`
_CONNECT_RETRY = 0.01  # seconds, as there
_READ_SIZE = 1 << 16


def ping(directory: SandboxDirectory, name: str) -> float:
    """Seconds that the agent took to answer. Raises `NotRunning`, `Paused`."""
    try:
        with _connected(directory) as connection:
            return _round_trip(connection)
    except (ChannelError, OSError) as error:
        raise unanswered(directory, name) from error


def unanswered(directory: SandboxDirectory, name: str) -> NotRunning:
    """Why a sandbox does not answer, for who has asked it."""
    status = _life.look(directory).status
    if status is _life.Status.PAUSED:
        return paused(name)
    return NotRunning(
        f"the sandbox {name!r} does not answer: it is {status}",
        hint=f"msb inspect {name} shows why" if status.active else f"start it: msb start {name}",
    )


def _connected(directory: SandboxDirectory) -> socket.socket:
    while True:
        try:
            return connect_unix(os.fspath(directory.socket))
        except BlockingIOError:
            sleep(_CONNECT_RETRY)  # the listener's backlog is full; nothing tells when it is not


def _round_trip(connection: socket.socket) -> float:
    channel = HostConnection("msb")
    connection.settimeout(_HANDSHAKE_TIMEOUT)
    _send(connection, channel)
    try:
        _await(connection, channel, HelloReceived)
    except TimeoutError:
        raise HandshakeTimeout(f"no HELLO within {_HANDSHAKE_TIMEOUT} seconds") from None
    connection.settimeout(None)
    began = perf_counter()
    channel.open("ping")
    _send(connection, channel)
    _await(connection, channel, Ended)
    return perf_counter() - began


def _send(connection: socket.socket, channel: HostConnection) -> None:
    data = b"".join(channel.output())
    connection.sendall(data)
    channel.sent(len(data))


def _await(
    connection: socket.socket, channel: HostConnection, wanted: type[HelloReceived] | type[Ended]
) -> None:
    while True:
        data = connection.recv(_READ_SIZE)
        for event in channel.receive(data) if data else channel.eof_received():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended) and "error" in event.body:
                raise ChannelError("the request was refused")  # it is paused, or about to be
            if isinstance(event, wanted):
                return
