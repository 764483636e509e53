"""What a connection reports: one small tuple for each frame that means something."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ._errors import ChannelError
from ._payload import Control


class HelloReceived(NamedTuple):
    """The guest's HELLO: the handshake is done. Text in it is the guest's and untrusted."""

    protocol: int
    name: str
    agent_version: str
    configured: bool


class HostHelloReceived(NamedTuple):
    """The host's HELLO: the guest's side must answer with `GuestConnection.hello`."""

    protocol: int
    name: str


class OpenReceived(NamedTuple):
    """The host opened a stream. `params` is the request without its method."""

    stream: int
    method: str
    params: Control


class Opened(NamedTuple):
    """The guest accepted the request."""

    stream: int
    body: Control


class EventReceived(NamedTuple):
    """Something happened on a stream."""

    stream: int
    name: str
    body: Control


class MessageReceived(NamedTuple):
    """The host has something to say about a stream."""

    stream: int
    name: str
    body: Control


class CancelReceived(NamedTuple):
    """The host wants the stream ended as soon as possible."""

    stream: int


class DataReceived(NamedTuple):
    """Data; when a consumer has taken it, its length goes to `consumed`."""

    stream: int
    channel: int
    data: bytes


class EofReceived(NamedTuple):
    """No more data comes on the channel."""

    stream: int
    channel: int


class CreditReceived(NamedTuple):
    """`amount` more bytes may be sent on the channel."""

    stream: int
    channel: int
    amount: int


class Ended(NamedTuple):
    """The guest ended the stream; its id is dead."""

    stream: int
    body: Control


class Failed(NamedTuple):
    """The connection is over: always the last event."""

    error: ChannelError


Event: TypeAlias = (
    HelloReceived
    | HostHelloReceived
    | OpenReceived
    | Opened
    | EventReceived
    | MessageReceived
    | CancelReceived
    | DataReceived
    | EofReceived
    | CreditReceived
    | Ended
    | Failed
)
