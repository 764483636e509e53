"""Runs a relay: one thread, one selector, the guest's port, a listening socket and its clients."""

from __future__ import annotations

import errno
import heapq
import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

from .channel import ChannelError, Piece
from .relay import Relay

READ_SIZE: Final = 1 << 18
"""Bytes read from a socket at a time. Payloads are copied out of the one buffer."""
WRITE_SIZE: Final = 1 << 18
"""Bytes offered to a socket at a time."""
MAX_CLIENTS: Final = 256
"""Clients at a time: one more is accepted and closed."""
DRAIN_TIMEOUT: Final = 1.0
"""Seconds for which clients may take what the guest had said when it ended."""
ACCEPT_PAUSE: Final = 0.2
"""Seconds without accepting after the process ran out of descriptors."""

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE

Callback = Callable[[], None]


class Timer:
    """A call that is due later. `cancel` undoes it."""

    __slots__ = ("_callback", "_number", "when")

    def __init__(self, when: float, number: int, callback: Callback) -> None:
        self.when = when
        self._number = number
        self._callback: Callback | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self._number) < (other.when, other._number)

    def cancel(self) -> None:
        """Makes sure that the call does not happen (again)."""
        self._callback = None

    def _run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class RelayServer:
    """Moves bytes between a `Relay`, the guest's port and its clients until `stop` or the guest's end.

    `port` is a connected stream socket and `listener` a listening one; the server makes both non-blocking
    and closes them when `run` returns. It is not safe for use by several threads.
    """

    def __init__(
        self, relay: Relay, port: socket.socket, listener: socket.socket, *, max_clients: int = MAX_CLIENTS
    ) -> None:
        self.relay = relay
        self.heard = time.monotonic()
        """When the guest last said anything."""
        self._port = port
        self._listener = listener
        self._max_clients = max_clients
        self._selector = selectors.DefaultSelector()
        self._sockets: dict[int, socket.socket] = {}
        self._interest: dict[int, int] = {}
        self._timers: list[Timer] = []
        self._timer_number = 0
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._stopping = False
        self._leaving = False
        self._accepting_input = True
        self._port_interest = _READ
        port.setblocking(False)
        listener.setblocking(False)
        self._selector.register(listener, _READ, self._on_listener)
        self._selector.register(port, _READ, self._on_port)

    # --------------------------------------------------------------------------------- for the program

    def watch(self, fd: int, callback: Callback) -> None:
        """Calls `callback` whenever `fd` can be read or has reached its end.

        Raises `KeyError` if it is watched already.
        """
        self._selector.register(fd, _READ, lambda _mask: callback())

    def unwatch(self, fd: int) -> None:
        """Ends `watch`; to be called before `fd` is closed. Raises `KeyError` if it is not watched."""
        self._selector.unregister(fd)

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Calls `callback` once, `delay` seconds from now, on the loop's thread."""
        self._timer_number += 1
        timer = Timer(time.monotonic() + delay, self._timer_number, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def add_client(self, connection: socket.socket, *, privileged: bool = False) -> None:
        """Serves a connected socket as a client; the server closes it in the end."""
        connection.setblocking(False)
        client = connection.fileno()
        self._sockets[client] = connection
        self.relay.client_connected(client, privileged=privileged)
        self._update(client)

    def send_past(self, data: bytes, timeout: float) -> None:
        """Sends bytes to the guest that are no part of the connection, between two pieces of it, which may
        be in the middle of a frame. Raises `OSError`, also after `timeout` seconds."""
        self._port.settimeout(timeout)
        try:
            self._port.sendall(data)
        finally:
            self._port.setblocking(False)

    def stop(self) -> None:
        """Makes `run` return soon: to be called from a callback."""
        self._stopping = True

    def stop_when_sent(self) -> None:
        """The same, when the clients have taken what is theirs, or have had `DRAIN_TIMEOUT` for it."""
        self._leaving = True
        self.call_later(DRAIN_TIMEOUT, self.stop)

    def run(self) -> ChannelError | None:
        """Serves until `stop` (returns None) or until the guest's connection is over (returns why).

        Exceptions of callbacks end it and pass through; sockets are closed in every case.
        """
        try:
            self._flush()
            while not self._stopping and self.relay.error is None:
                self._turn()
            if self.relay.error is not None:
                self._drain()
            return self.relay.error
        finally:
            self._close()

    # ----------------------------------------------------------------------------------------- the loop

    def _turn(self) -> None:
        timeout: float | None = None
        while self._timers and self._timers[0]._callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            timeout = max(0.0, self._timers[0].when - time.monotonic())
        for key, mask in self._selector.select(timeout):
            key.data(mask)
            if self._stopping:
                return
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            heapq.heappop(self._timers)._run()
        self._flush()

    def _drain(self) -> None:
        """Lets clients take what is theirs, and the guest its ERROR; nothing new is read or accepted."""
        registered = self._selector.get_map()
        for listening in (self._listener, self._port):
            if listening.fileno() in registered:
                self._selector.unregister(listening)
        self._send_to_port()
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True

        timer = self.call_later(DRAIN_TIMEOUT, expire)
        while self._sockets and not expired and not self._stopping:
            self._turn()
        timer.cancel()

    def _close(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._sockets.clear()
        self._listener.close()
        self._port.close()
        self._selector.close()

    def _flush(self) -> None:
        relay = self.relay
        if relay.error is None:
            if relay.guest_pending and not self._port_interest & _WRITE:
                self._send_to_port()
            accepting = relay.accepts_input
            if accepting != self._accepting_input:
                self._accepting_input = accepting
                for client in self._sockets:
                    self._update(client)
        for client in relay.take_touched():
            if self._interest.get(client, 0) & _WRITE:
                self._update(client)
            else:
                self._send_to_client(client)
        for client in relay.closed_clients():
            # One that broke the protocol had its chance to take the ERROR. When the guest has ended,
            # clients may take what it had said, until the drain is over.
            if relay.error is None or not relay.client_pending(client):
                self._forget(client)
        if self._leaving and not any(relay.client_pending(client) for client in relay.clients):
            self._stopping = True

    # ---------------------------------------------------------------------------------------- the port

    def _on_port(self, mask: int) -> None:
        if mask & _WRITE:
            self._send_to_port()
        if mask & _READ:
            try:
                count = self._port.recv_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                count = 0
            if count:
                self.heard = time.monotonic()
                self.relay.guest_received(self._buffer[:count])
            else:
                self.relay.guest_eof()

    def _send_to_port(self) -> None:
        blocked = self._send(self._port, self.relay.guest_output, self.relay.guest_sent)
        wanted = _READ | _WRITE if blocked else _READ
        if blocked is None:
            self.relay.guest_eof()
        elif wanted != self._port_interest and self.relay.error is None:
            self._port_interest = wanted
            self._selector.modify(self._port, wanted, self._on_port)

    def _send(
        self, connection: socket.socket, output: Callable[[int], list[Piece]], sent: Callable[[int], None]
    ) -> bool | None:
        """Sends what there is, for a few rounds.

        Returns whether the rest has to wait; None: the socket is dead.
        """
        for _ in range(4):
            pieces = output(WRITE_SIZE)
            if not pieces:
                return False
            try:
                count = connection.sendmsg(pieces)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return None
            sent(count)
        return True

    # -------------------------------------------------------------------------------------- the clients

    def _on_listener(self, mask: int) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                # The connection stays in the backlog and would wake the loop for ever.
                self._selector.unregister(self._listener)
                self.call_later(ACCEPT_PAUSE, self._accept_again)
                return
            if len(self._sockets) >= self._max_clients:
                connection.close()
            else:
                self.add_client(connection)

    def _accept_again(self) -> None:
        if self.relay.error is None:
            self._selector.register(self._listener, _READ, self._on_listener)

    def _on_client(self, client: int, mask: int) -> None:
        if client not in self._sockets:
            return
        if mask & _WRITE:
            self._send_to_client(client)
        if mask & _READ and client in self._sockets and self.relay.wants_read(client):
            try:
                count = self._sockets[client].recv_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                count = 0
            if count:
                self.relay.client_received(client, self._buffer[:count])
            else:
                self._forget(client)

    def _send_to_client(self, client: int) -> None:
        relay = self.relay
        blocked = self._send(
            self._sockets[client],
            lambda limit: relay.client_output(client, limit),
            lambda count: relay.client_sent(client, count),
        )
        if blocked is None:
            self._forget(client)
        else:
            self._update(client, blocked)

    def _update(self, client: int, blocked: bool | None = None) -> None:
        """Registers what the loop waits for at a client's socket."""
        before = self._interest.get(client, 0)
        write = before & _WRITE if blocked is None else (_WRITE if blocked else 0)
        wanted = write | (_READ if self.relay.wants_read(client) else 0)
        if wanted == before:
            return
        connection = self._sockets[client]
        if not before:
            self._selector.register(connection, wanted, lambda mask: self._on_client(client, mask))
        elif wanted:
            self._selector.modify(connection, wanted, self._selector.get_key(connection).data)
        else:
            self._selector.unregister(connection)
        self._interest[client] = wanted

    def _forget(self, client: int) -> None:
        connection = self._sockets.pop(client)
        if self._interest.pop(client, 0):
            self._selector.unregister(connection)
        connection.close()
        self.relay.client_gone(client)
