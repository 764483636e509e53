"""A name server of the host for tests of a guest's names."""

from __future__ import annotations

import socket
import threading
from types import TracebackType


class NameServer:
    """Answers questions for IPv4 addresses by `known`, all others with "nothing"; keeps what it was asked.

    On port 53 of a loopback address, which only root has: `PermissionError` elsewhere.
    """

    def __init__(self, known: dict[str, str], address: str = "127.0.53.53") -> None:
        self.address = address
        self.asked: list[str] = []
        self._known = known
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((address, 53))
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(1500)
            if not question:
                return
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode())
                at += 1 + question[at]
            name = ".".join(labels)
            self.asked.append(name)
            known = self._known.get(name) if question[at + 1 : at + 3] == b"\0\1" else None
            answer = b"" if known is None else b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(known)
            counts = b"\0\1\0\1\0\0\0\0" if answer else b"\0\1\0\0\0\0\0\0"
            self._socket.sendto(question[:2] + b"\x81\x80" + counts + question[12 : at + 5] + answer, sender)

    def __enter__(self) -> NameServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (self.address, 53))
        self._thread.join(5)
        self._socket.close()
