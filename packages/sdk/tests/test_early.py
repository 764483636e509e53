"""The connection to a guest that a start begins with."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from microsandbox._create import Pending
from microsandbox._launch import Supervisor
from microsandbox.sandbox import _greeted
from microsandbox_core.agent import AgentClient
from microsandbox_core.channel import GuestConnection


class _Starting:
    """A start whose supervisor is this test."""

    def __init__(self, agent: socket.socket | None) -> None:
        self.agent = agent
        self.supervisor = cast("Supervisor", self)

    def take_agent(self) -> socket.socket | None:
        agent, self.agent = self.agent, None
        return agent


def _starting(agent: socket.socket | None) -> Pending:
    return cast("Pending", cast("Any", _Starting(agent)))


def test_it_is_told_once_the_guest_has_answered() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        told: list[AgentClient] = []
        greeting = asyncio.ensure_future(_greeted(_starting(ours), told.append))
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        guest = GuestConnection()
        guest.receive(await loop.sock_recv(theirs, 4096))  # its HELLO, long before anybody answers
        assert (told, greeting.done()) == ([], False)
        guest.hello(name="guest", agent_version="1", configured=False)
        await loop.sock_sendall(theirs, b"".join(guest.output()))
        client = await greeting
        assert client is not None
        assert told == [client]
        await client.close()
        theirs.close()

    asyncio.run(main())


def test_a_guest_that_is_given_up_is_told_nothing() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        told: list[AgentClient] = []
        assert await _greeted(_starting(ours), told.append) is None
        assert await _greeted(_starting(None), told.append) is None
        assert told == []

    asyncio.run(main())


def test_a_start_that_is_given_up_closes_it() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        greeting = asyncio.ensure_future(_greeted(_starting(ours), lambda client: None))
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        while await loop.sock_recv(theirs, 4096):
            greeting.cancel()
        assert ours.fileno() < 0
        theirs.close()

    asyncio.run(main())
