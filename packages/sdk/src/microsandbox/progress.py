"""What a sandbox that is being made is doing: `ProgressEvent`, `PullSession`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from microsandbox_oci import Progress

    from microsandbox.sandbox import Sandbox


class ProgressPhase(StrEnum):
    """What is being done, in the order in which it is done; an image that is in the store needs only the
    last two. Layers are fetched and converted at the same time."""

    RESOLVE = "resolve"
    """A registry is asked for an image."""
    DOWNLOAD = "download"
    """A layer is fetched."""
    LOAD = "load"
    """An archive is read."""
    VERIFY = "verify"
    """A layer is read and its digest compared."""
    CONVERT = "convert"
    """A layer becomes a disk."""
    MERGE = "merge"
    """The layers are joined."""
    BOOT = "boot"
    """The machine is started."""
    READY = "ready"
    """Commands can be run."""


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One step. `subject`: the archive's path, the digest of the layer or the image, the name of the sandbox.
    `done` and `total` are bytes; `total` is None where that is not known."""

    phase: ProgressPhase
    subject: str
    done: int = 0
    total: int | None = None


_PHASES = {
    "resolving": ProgressPhase.RESOLVE,
    "downloading": ProgressPhase.DOWNLOAD,
    "reading": ProgressPhase.LOAD,
    "verifying": ProgressPhase.VERIFY,
    "converting": ProgressPhase.CONVERT,
    "merging": ProgressPhase.MERGE,
}


def reporting(progress: Callable[[ProgressEvent], None] | None) -> Callable[[Progress], None] | None:
    """For the image store: what it does, told to `progress`."""
    if progress is None:
        return None

    def report(step: Progress) -> None:
        phase = _PHASES.get(step.phase)
        if phase is not None:
            progress(ProgressEvent(phase, step.subject, step.done, step.total))
        elif step.phase == "warning":
            import logging

            logging.getLogger("microsandbox").warning(step.subject)

    return report


class PullSession:
    """A sandbox that is being made, and what is done for that; made by `Sandbox.create_with_progress`.

    ::

        async with Sandbox.create_with_progress(image="./rootfs") as session:
            async for event in session.progress:
                print(event.phase, event.done)
            sandbox = await session.result()

    It begins when it is entered. Left before `result` was taken, it ends and removes what it has begun.
    """

    def __init__(
        self, create: Callable[[Callable[[ProgressEvent], None]], Coroutine[Any, Any, Sandbox]]
    ) -> None:
        self._create = create
        self._events: asyncio.Queue[ProgressEvent | None] = asyncio.Queue()
        self._task: asyncio.Task[Sandbox] | None = None
        self._taken = False

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("the session has been entered already")
        loop = asyncio.get_running_loop()

        def report(event: ProgressEvent) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._task = asyncio.create_task(self._create(report), name="msb-create")
        # Behind what was reported on another thread before.
        self._task.add_done_callback(lambda _: loop.call_soon(self._events.put_nowait, None))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        if self._taken:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled() and self._task.exception() is None:
            await self._task.result().destroy()

    @property
    def progress(self) -> AsyncIterator[ProgressEvent]:
        """What is done, as it is done; it ends with the sandbox's start, or its failure, which `result`
        raises. Each event is given out once."""
        return self._progress()

    async def _progress(self) -> AsyncIterator[ProgressEvent]:
        self._entered()
        while (event := await self._events.get()) is not None:
            yield event
        self._events.put_nowait(None)  # for whoever asks again

    async def result(self) -> Sandbox:
        """Wait for the sandbox, which is the caller's from now on. Once; raises what `Sandbox.create`
        raises."""
        task = self._entered()
        if self._taken:
            raise RuntimeError("the result has been taken already")
        sandbox = await asyncio.shield(task)
        self._taken = True
        return sandbox

    def _entered(self) -> asyncio.Task[Sandbox]:
        if self._task is None:
            raise RuntimeError("the session has not been entered: use it in `async with`")
        return self._task
