"""What a hostile sandbox may answer to an operation on its files: an error, never more."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from microsandbox.errors import FilesystemError, PathNotFound
from microsandbox.files import SandboxFiles, _sandbox
from microsandbox.files._records import Entry, encode_entry, encode_mark
from microsandbox_core.agent import AgentClient, ExitStatus, Finished, ProcessEvent, Stderr, Stdout
from microsandbox_core.channel import Control, Value, encode_control

pytestmark = pytest.mark.asyncio

SUCCESS = Finished(ExitStatus(0, None))
FAILURE = Finished(ExitStatus(1, None))


class Guest:
    """A client whose every operation is answered with the same events."""

    def __init__(self, *events: ProcessEvent) -> None:
        self.events = list(events)
        self.cancelled = False
        self.stdin = self

    async def files(self, operation: str, params: Control) -> Guest:
        return self

    def __aiter__(self) -> Guest:
        return self

    async def __anext__(self) -> ProcessEvent:
        if not self.events:
            raise StopAsyncIteration
        return self.events.pop(0)

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...

    async def wait(self) -> None: ...

    def close_output(self, channel: int) -> None: ...

    def cancel(self) -> None:
        self.cancelled = True


def files(guest: Guest) -> SandboxFiles:
    return SandboxFiles(cast("AgentClient", guest), "box")


def reported(error: Value) -> Stderr:
    return Stderr(encode_control({"error": error}))


async def caught(call: Coroutine[Any, Any, object]) -> FilesystemError:
    with pytest.raises(FilesystemError) as error:
        await call
    return error.value


@pytest.mark.parametrize(
    "answer",
    [
        (),
        (Stderr(b"\xc1"),),
        (Stderr(b""), Stdout(b"x")),
        (Stderr(bytes(200_000)),),
        (reported(None),),
        (reported(5),),
        (reported([]),),
        (reported({}),),
        (reported({"kind": 5, "message": b"x", "errno": "x", "path": "x"}),),
        (reported({"errno": 2**63, "path": bytes(60_000), "message": "m" * 1000}),),
        (reported({"errno": -5}),),
    ],
)
async def test_an_answer_that_is_none_is_an_error(answer: tuple[ProcessEvent, ...]) -> None:
    guest = Guest(*answer, FAILURE)
    error = await caught(files(guest).read("/a"))
    assert str(error).startswith("box:")
    assert guest.cancelled
    await caught(files(Guest(*answer, FAILURE)).mkdir("/a"))


async def test_an_error_says_what_and_where() -> None:
    told: Control = {"kind": "failed", "message": "No such file", "errno": errno.ENOENT, "path": b"/a/b"}
    error = await caught(files(Guest(reported(told), FAILURE)).read("/a"))
    assert isinstance(error, PathNotFound)
    assert (str(error), error.errno) == ("box:/a/b: no such file or directory", errno.ENOENT)
    error = await caught(files(Guest(reported({"kind": "not_regular"}), FAILURE)).read("/a"))
    assert error.code == "not_regular"
    error = await caught(files(Guest(Finished(ExitStatus(None, 9, oom_killed=True)))).read("/a"))
    assert "ran out of memory" in str(error)


@pytest.mark.parametrize(
    "facts", [b"", b"\xc1", *(encode_control({"mode": mode}) for mode in ("x", True, 2**64 - 1))]
)
async def test_facts_that_are_none_are_an_error(facts: bytes) -> None:
    error = await caught(files(Guest(Stderr(facts), SUCCESS)).stat("/a"))
    assert error.code == "invalid_reply"


async def test_success_without_the_whole_tree_is_an_error(tmp_path: Path) -> None:
    opened = encode_entry(Entry(b"F", 0o100644, 0, 0, 5, 0, 0, b""))
    for sent in ([], [Stdout(opened)], [Stdout(opened + encode_mark(b"E"))]):
        guest = Guest(*sent, Stderr(encode_control({})), SUCCESS)
        assert (await caught(files(guest).copy_to_host("/a", tmp_path / "new"))).code == "invalid_stream"
    assert not list(tmp_path.glob(".msb-*"))


async def test_a_listing_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sandbox, "_LISTING_MAX", 1000)
    item = encode_entry(Entry(b"I", 0o100644, 0, 0, 0, 0, 0, b"name"))
    error = await caught(files(Guest(*[Stdout(item)] * 100)).list("/"))
    assert error.code == "too_large"
    assert (await caught(files(Guest(Stdout(b"x" * 50))).list("/"))).code == "invalid_stream"


async def test_a_copy_that_is_cancelled_is_given_up(tmp_path: Path) -> None:
    class Silent(Guest):
        silent = asyncio.Event()

        async def __anext__(self) -> ProcessEvent:
            if not self.events:
                self.silent.set()
                await asyncio.Event().wait()
            return await super().__anext__()

    opened = encode_entry(Entry(b"F", 0o100644, 0, 0, 5, 0, 0, b""))
    guest = Silent(Stdout(opened))
    copying = asyncio.create_task(files(guest).copy_to_host("/a", tmp_path / "new"))
    await guest.silent.wait()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert guest.cancelled
    assert list(tmp_path.iterdir()) == []
