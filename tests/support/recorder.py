"""A server of the tests' own internet that keeps what it was sent."""

from __future__ import annotations

import socket
import threading

from tests.support.internet import Internet

PATIENCE = 60.0


class Recorder:
    """Listens on a port of all the world's addresses.

    When what came over a connection ends with `end`, it says `answer`.
    """

    def __init__(self, internet: Internet, port: int, answer: bytes, *, end: bytes) -> None:
        self._server = internet.listen(port)
        self._server.settimeout(None)
        self._answer, self._end = answer, end
        self._accepted = 0
        self._heard: dict[int, bytes] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._accept, name="recorder", daemon=True).start()

    def heard(self, count: int) -> list[bytes]:
        """All that came over each of the `count` connections since the last call, when all have ended."""
        with self._changed:
            there = self._changed.wait_for(lambda: len(self._heard) >= count, PATIENCE)
            assert there, f"{len(self._heard)} of {count} connections have ended"
            found = [self._heard[number] for number in sorted(self._heard)]
            self._heard.clear()
        assert len(found) == count
        return found

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._accepted += 1
            threading.Thread(
                target=self._serve, args=[client, self._accepted], name="recorder", daemon=True
            ).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        came = b""
        with client:
            try:
                while data := client.recv(1 << 16):
                    came += data
                    if came.endswith(self._end):
                        client.sendall(self._answer)
            except OSError:
                pass  # reset: that is an end, too
        with self._changed:
            self._heard[number] = came
            self._changed.notify()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
