"""The exceptions of the agent channel.

ChannelError                  code, hint
├── ProtocolError             the peer sent what the protocol forbids
├── PeerError                 the peer sent ERROR: it says we broke the protocol
├── ConnectionLost            the byte stream ended, or was never there
│   └── HandshakeTimeout      the peer took too long to say HELLO
├── OutcomeUnknown            a request was dispatched and its result can no longer be learned
├── RequestFailed             the guest ended the stream with an error
└── StreamClosed              used a stream that is over, or cannot be opened
    └── TooManyStreams        2,048 streams are open already
"""

from __future__ import annotations


class ChannelError(Exception):
    """Anything that goes wrong on an agent channel.

    `code` is stable and meant for programs; `hint` says what a person can do, and may be empty.
    """

    code = "channel"
    hint = ""


class ProtocolError(ChannelError):
    """The peer broke the protocol. `code` is one of the codes of the specification.

    The connection is over; the `ERROR` frame that says so has been queued.
    """

    hint = "the peer speaks another version of the agent channel, or is hostile"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class PeerError(ChannelError):
    """The peer sent `ERROR`: `code` and `message` are its words, and untrusted text."""

    hint = "the two ends do not agree on the protocol: are they of the same release?"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"the peer ended the connection: {code}: {message}")
        self.code = code
        self.message = message


class ConnectionLost(ChannelError):
    """The byte stream under the channel ended, failed, or could not be opened."""

    code = "connection_lost"
    hint = "the sandbox has stopped or its supervisor has ended"


class HandshakeTimeout(ConnectionLost):
    """The peer did not say HELLO within the time allowed."""

    code = "handshake_timeout"
    hint = "the guest has not finished booting, or its agent does not answer"


class OutcomeUnknown(ChannelError):
    """A request reached the channel, and the connection ended before its result came.

    It may or may not have had its effects. It is never repeated by this library.
    """

    code = "outcome_unknown"
    hint = "look at the effects of the command before running it again"


class RequestFailed(ChannelError):
    """The guest ended a stream with an error.

    `code` and `kind` are the error's kind (`not_found`, `permission_denied`, ...); `errno` is the guest's
    error number where it gave one; `details` is the error's whole map.
    """

    def __init__(self, kind: str, message: str, errno: int | None, details: dict[str, object]) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.code = kind
        self.kind = kind
        self.message = message
        self.errno = errno
        self.details = details


class StreamClosed(ChannelError):
    """A stream was used that is not open, or in a way that its state does not allow."""

    code = "stream_closed"


class TooManyStreams(StreamClosed):
    """As many streams are open as the protocol allows."""

    code = "too_many_streams"
    hint = "wait for running commands to end"
