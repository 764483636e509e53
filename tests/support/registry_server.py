"""A registry on loopback that serves what a test gives it, and misbehaves where the test says so."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Seen:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Registry:
    """What is served. `faults` are asked first, in order: each gives an answer, or None to pass."""

    server: ThreadingHTTPServer
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Callable[[Seen, Any], Answer | None]] = field(default_factory=list)
    requests: list[Seen] = field(default_factory=list)
    authentication: str | None = None
    user: tuple[str, str] | None = None
    refresh_token: str | None = None
    token: str = "a-token"
    lock: Any = field(default_factory=threading.Lock)

    @property
    def domain(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    def add(self, name: str, tag: str, image: Any) -> str:
        """Serve an image of `Sources.image`; return its manifest's digest."""
        for data in (image.config, *image.blobs):
            self.blobs[_digest(data)] = data
        return self.add_manifest(name, tag, "application/vnd.oci.image.manifest.v1+json", image.manifest)

    def add_manifest(self, name: str, tag: str, kind: str, data: bytes) -> str:
        digest = _digest(data)
        self.manifests[name, tag] = self.manifests[name, digest] = (kind, data)
        return digest

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, seen.path)) for seen in self.requests)


class _Handler(BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("content-length", "0"))))

    def _serve(self, body: bytes) -> None:
        registry = self.registry
        seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        with registry.lock:
            registry.requests.append(seen)
        for fault in registry.faults:
            answer = fault(seen, self)
            if answer is not None:
                return self._answer(*answer)
        path = urlsplit(self.path).path
        if path == "/token":
            return self._answer(*_token(registry, seen, body))
        if registry.authentication and not _allowed(registry, seen):
            challenge = {
                "bearer": f'Bearer realm="http://{registry.domain}/token",service="s",scope="repository:x:pull"',
                "basic": 'Basic realm="here"',
            }[registry.authentication]
            return self._answer(401, {"WWW-Authenticate": challenge}, b"{}")
        return self._answer(*_content(registry, seen, path))

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if "Content-Length" in headers and int(headers["Content-Length"]) != len(body):
            self.close_connection = True


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _allowed(registry: Registry, seen: Seen) -> bool:
    header = seen.headers.get("authorization", "")
    if registry.authentication == "bearer":
        return header == f"Bearer {registry.token}"
    assert registry.user is not None
    return header == "Basic " + base64.b64encode(":".join(registry.user).encode()).decode()


def _token(registry: Registry, seen: Seen, body: bytes) -> Answer:
    if seen.method == "POST":
        form = parse_qs(body.decode())
        good = form.get("refresh_token") == [registry.refresh_token] and form["service"] == ["s"]
    else:
        header = seen.headers.get("authorization", "")
        wanted = registry.user and "Basic " + base64.b64encode(":".join(registry.user).encode()).decode()
        good = header == (wanted or "")
    if not good:
        return 401, {}, b"{}"
    return 200, {}, json.dumps({"token": registry.token, "expires_in": 300}).encode()


def _content(registry: Registry, seen: Seen, path: str) -> Answer:
    if path == "/v2/":
        return 200, {}, b"{}"
    if matched := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
        found = registry.manifests.get((matched[1], matched[2]))
        if found:
            kind, data = found
            return 200, {"Content-Type": kind, "Docker-Content-Digest": _digest(data)}, data
    elif matched := re.fullmatch(r"/v2/.+/blobs/([^/]+)", path):
        blob = registry.blobs.get(matched[1])
        if blob is not None:
            return _ranged(blob, seen.headers.get("range"))
    elif matched := re.fullmatch(r"/v2/(.+)/tags/list", path):
        return _tag_page(registry, matched[1], seen.path)
    body = json.dumps({"errors": [{"code": "UNKNOWN", "message": "nothing \x1b[31m here"}]}).encode()
    return 404, {}, body


def _ranged(blob: bytes, header: str | None) -> Answer:
    matched = re.fullmatch(r"bytes=(\d+)-", header or "")
    if not matched:
        return 200, {}, blob
    start = int(matched[1])
    return 206, {"Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"}, blob[start:]


def _tag_page(registry: Registry, name: str, path: str) -> Answer:
    query = parse_qs(urlsplit(path).query)
    tags, size, last = registry.tags.get(name, []), int(query["n"][0]), query.get("last", [""])[0]
    begin = tags.index(last) + 1 if last else 0
    page = tags[begin : begin + size]
    headers = {}
    if begin + size < len(tags):
        headers["Link"] = f'</v2/{name}/tags/list?n={size}&last={page[-1]}>; rel="next"'
    return 200, headers, json.dumps({"name": name, "tags": page}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of these tests are killed, and hang up."""


@contextmanager
def serving() -> Iterator[Registry]:
    """Run a registry on a free port of loopback for the block."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    registry = Handler.registry = Registry(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
