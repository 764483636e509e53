"""What agentd does for `Sandbox.fs`, on a file system in memory: see `docs/files.md` and
`docs/agent-channel.md`."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import Any

from microsandbox_core.channel._payload import encode_control

from microsandbox.files._records import (
    BYTES_MAX,
    Content,
    Entry,
    Hole,
    Mark,
    Parser,
    StreamInvalid,
    encode_content,
    encode_entry,
    encode_mark,
)
from microsandbox.testing._commands import Call
from microsandbox.testing._tree import Node, Tree, directory, error, file, link


async def operate(call: Call, tree: Tree, name: str, params: dict[str, Any]) -> int:
    """Do the operation; its result goes to standard error, as the agent's does. The exit code."""
    path: bytes = params["path"]
    try:
        result = await _operate(call, tree, name, path, params)
    except OSError as failure:
        told = {
            "kind": "failed",
            "message": failure.strerror,
            "path": failure.filename or path,
            "errno": failure.errno,
        }
        call.stderr(encode_control({"error": told}))
        return 1
    call.stderr(encode_control(result))
    return 0


async def _operate(call: Call, tree: Tree, name: str, path: bytes, params: dict[str, Any]) -> dict[str, Any]:
    if name == "stat":
        return _facts(tree.find(path, follow=params["follow"]))
    if name == "list":
        node = tree.find(path)
        if not node.is_directory:
            raise error(errno.ENOTDIR, path)
        for child, found in node.children.items():
            call.stdout(encode_entry(_entry(b"I", found, child)))
        call.stdout(encode_mark(b"Z"))
    elif name == "read":
        call.stdout(tree.read(path))
    elif name == "write":
        content = await _received(call, path)
        tree.write(path, content)
    elif name == "mkdir":
        tree.make(path, parents=params["parents"])
    elif name == "remove":
        tree.remove(path, recursive=params["recursive"])
    elif name == "rename":
        tree.rename(path, params["to"])
    elif name == "chmod":
        node = tree.find(path)
        node.mode = stat.S_IFMT(node.mode) | params["mode"]
    elif name == "chown":
        node = tree.find(path)
        node.uid, node.gid = params["uid"], params["gid"]
    elif name == "pack":
        for piece in _packed(tree.find(path, follow=False), b""):
            call.stdout(piece)
        call.stdout(encode_mark(b"Z"))
    elif name == "unpack":
        await _unpack(call, tree, path, params["name"], special_bits=params["special_bits"])
    else:
        raise error(errno.ENOSYS, path)
    return {}


def _facts(node: Node) -> dict[str, Any]:
    entry = _entry(b"I", node, b"")
    names = ("mode", "seconds", "nanoseconds", "size", "uid", "gid")
    facts: dict[str, Any] = {name: getattr(entry, name) for name in names}
    return {**facts, "target": node.target} if node.is_link else facts


def _entry(kind: bytes, node: Node, name: bytes) -> Entry:
    seconds, nanoseconds = divmod(node.mtime_ns, 10**9)
    size = len(node.target if node.is_link else node.content)
    return Entry(kind, node.mode, seconds, nanoseconds, size, node.uid, node.gid, name, node.target)


def _packed(node: Node, name: bytes) -> Iterator[bytes]:
    kind = b"D" if node.is_directory else b"L" if node.is_link else b"F"
    yield encode_entry(_entry(kind, node, name))
    if node.is_directory:
        for child, found in node.children.items():
            yield from _packed(found, child)
        yield encode_mark(b"U")
    elif node.is_file:
        for offset in range(0, len(node.content), BYTES_MAX):
            yield encode_content(node.content[offset : offset + BYTES_MAX])
        yield encode_mark(b"E")


async def _received(call: Call, path: bytes) -> bytes:
    """The content of one file, once all of it has come."""
    content = bytearray()
    complete = False
    parser = Parser()
    try:
        while data := await call.read():
            for record in parser.feed(data):
                if isinstance(record, Content):
                    content += record.data
                elif isinstance(record, Hole):
                    content += bytes(record.size)
                complete = isinstance(record, Mark) and record.kind == b"Z"
    except StreamInvalid:
        complete = False
    if not complete:
        raise error(errno.EPIPE, path)
    return bytes(content)


async def _unpack(call: Call, tree: Tree, path: bytes, name: bytes | None, *, special_bits: bool) -> None:
    parser = Parser()
    parents: list[Node] = []
    open_file: Node | None = None
    complete = False
    allowed = 0o7777 if special_bits else 0o777
    while data := await call.read():
        for record in parser.feed(data):
            if isinstance(record, Entry):
                if parents:
                    parent, own = parents[-1], record.name
                else:
                    parent, own = _destination(tree, path, name, is_directory=record.kind == b"D")
                made = _made(record, allowed)
                there = parent.children.get(own)
                if made.is_directory and there is not None and there.is_directory:
                    made = there  # merged into
                elif there is not None and there.is_directory != made.is_directory:
                    raise error(errno.EISDIR if there.is_directory else errno.ENOTDIR, path)
                parent.children[own] = made
                if made.is_directory:
                    parents.append(made)
                open_file = made if made.is_file else None
            elif isinstance(record, Content) and open_file is not None:
                open_file.content += bytes(record.data)
            elif isinstance(record, Hole) and open_file is not None:
                open_file.content += bytes(record.size)
            elif isinstance(record, Mark):
                if record.kind == b"U":
                    parents.pop()
                complete = record.kind == b"Z"
    if not complete:
        raise error(errno.EPIPE, path)


def _made(record: Entry, allowed: int) -> Node:
    if record.kind == b"D":
        node = directory(record.mode & allowed)
    elif record.kind == b"L":
        node = link(record.target)
    else:
        node = file(mode=record.mode & allowed)
    node.mtime_ns = record.seconds * 10**9 + record.nanoseconds
    return node


def _destination(tree: Tree, path: bytes, name: bytes | None, *, is_directory: bool) -> tuple[Node, bytes]:
    """Where a tree goes, as with `cp -r`: into a directory that is there, by its name, or under this name."""
    try:
        there = tree.find(path)
    except FileNotFoundError:
        there = None
    if there is not None and there.is_directory:
        if name is not None:
            return there, name
        if is_directory:
            # Its content is copied into the one that is there.
            holder = directory()
            holder.children[b"content"] = there
            return holder, b"content"
    elif path.endswith(b"/") and not is_directory:
        raise error(errno.ENOTDIR, path)
    return tree.place(path)
