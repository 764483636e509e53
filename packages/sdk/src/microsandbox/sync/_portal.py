"""The event loop on a thread of its own that does the work of `microsandbox.sync`."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Generic, Self, TypeVar

from microsandbox.sandbox import Sandbox

_T = TypeVar("_T")
_W = TypeVar("_W")
_S = TypeVar("_S")

_END: Any = object()
_CLOSE_TIME = 2.0  # seconds for what is still under way when the interpreter ends


class Portal:
    """A loop, its thread, and ways in. Callers block until what they asked for is done; the loop is nobody
    else's, so it does not matter whether they are in one of their own, or on which thread."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="microsandbox-sync", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    def run(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What the coroutine returns. A signal's exception, such as `KeyboardInterrupt`, cancels it and is
        raised when it has cleaned up; a second one is raised at once."""
        self._check()
        done: concurrent.futures.Future[_T] = concurrent.futures.Future()
        task: list[asyncio.Task[_T]] = []

        def begin() -> None:
            task.append(self._loop.create_task(make()))
            task[0].add_done_callback(lambda ended: _settle(done, ended))

        self._loop.call_soon_threadsafe(begin)
        try:
            error = done.exception()
        except BaseException:
            # Not the coroutine's: that would have been returned.
            self._loop.call_soon_threadsafe(lambda: task[0].cancel())
            concurrent.futures.wait([done])
            raise
        if error is not None:
            try:
                raise error
            finally:
                del error  # a cycle through this frame
        return done.result()

    def call(self, function: Callable[[], _T]) -> _T:
        """What the function returns, called on the loop's thread."""

        async def calling() -> _T:
            return function()

        return self.run(calling)

    def iterate(self, make: Callable[[], AsyncIterator[_T]]) -> Iterator[_T]:
        """The items of an asynchronous iterator."""
        source = self.call(make)

        async def following() -> _T:
            return await anext(source, _END)

        try:
            while (item := self.run(following)) is not _END:
                yield item
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                self._close_source(close)

    @contextmanager
    def context(
        self, make: Callable[[], AbstractAsyncContextManager[_S]], wrap: Callable[[_S], _T]
    ) -> Iterator[_T]:
        """An asynchronous context, whose value is given to `wrap`."""
        manager = self.call(make)
        value = self.run(lambda: _entering(manager))
        try:
            yield wrap(value)
        except BaseException as error:
            raised = error  # the other name ends with this block
            if not self.run(lambda: _leaving(manager, raised)):
                raise
        else:
            self.run(lambda: _leaving(manager, None))

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this object belongs to the process {self._pid}, and this one is a copy made by fork(): "
                "get the sandbox by its name here, with Sandbox.connect(name)"
            )
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "microsandbox.sync was called on its own thread, from a callback: "
                "this call would wait for itself. Note what happened there, and act on it elsewhere"
            )

    def _close_source(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """End an iterator that is not used any more: maybe by the garbage collector, on any thread."""
        if os.getpid() != self._pid or self._loop.is_closed():
            return
        if threading.current_thread() is self._thread:
            self._loop.create_task(close())
        else:
            self.run(close)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=_CLOSE_TIME))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _close(self) -> None:
        if os.getpid() == self._pid and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(2 * _CLOSE_TIME)


class Mirror(Generic[_W]):
    """An object of the asynchronous interface, used from plain code."""

    _wrapped: _W
    _portal: Portal

    @classmethod
    def _wrap(cls, wrapped: _W) -> Self:
        mirror = cls.__new__(cls)
        mirror._bind(wrapped)
        return mirror

    def _bind(self, wrapped: _W) -> None:
        self._wrapped = wrapped
        self._portal = portal()
        if isinstance(wrapped, Sandbox):
            _sandboxes.add(wrapped)

    def __repr__(self) -> str:
        return f"<microsandbox.sync.{type(self).__name__} of {self._wrapped!r}>"


def unwrap(value: Any) -> Any:
    """What a mirror stands for; anything else as it is."""
    return value._wrapped if isinstance(value, Mirror) else value


_lock = threading.Lock()
_current: Portal | None = None
_inherited: list[Portal] = []
_sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def portal() -> Portal:
    """This process's; made when it is first needed."""
    global _current
    with _lock:
        if _current is None:
            _current = Portal()
        return _current


def _after_fork() -> None:
    """In the child: the thread was not copied, and what it served stays the parent's."""
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        # Kept: closing its loop would take the parent's descriptors out of the epoll set, which is shared.
        _inherited.append(_current)
        _current = None
    for sandbox in list(_sandboxes):
        # An attached sandbox ends when the last copy of its lifeline is closed: that is to be the parent's.
        if sandbox._pending is not None:
            sandbox._pending.supervisor.close()
    _sandboxes.clear()


os.register_at_fork(after_in_child=_after_fork)


async def _entering(manager: AbstractAsyncContextManager[_S]) -> _S:
    return await manager.__aenter__()


async def _leaving(manager: AbstractAsyncContextManager[Any], error: BaseException | None) -> bool:
    kind, traceback = (None, None) if error is None else (type(error), error.__traceback__)
    return bool(await manager.__aexit__(kind, error, traceback))


def _settle(done: concurrent.futures.Future[_T], task: asyncio.Task[_T]) -> None:
    if task.cancelled():
        done.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())
