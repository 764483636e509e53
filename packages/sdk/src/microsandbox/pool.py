"""Sandboxes started ahead of their use, so that handing one out costs no start."""

from __future__ import annotations

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable
from typing import Final, Self, Unpack

from microsandbox_core import env as environment

from microsandbox import _config, _create
from microsandbox._launch import Supervisor
from microsandbox.errors import ConfigError, MicrosandboxError, PoolClosed, StartError
from microsandbox.image import ImageArgument, image_text
from microsandbox.options import SandboxOptions
from microsandbox.sandbox import Sandbox

FIRST_PAUSE: Final = 0.1
"""Seconds without starts after one that failed; doubled for each further failure in a row."""
LONGEST_PAUSE: Final = 10.0
"""Seconds that such a pause has at most."""


class SandboxPool:
    """Keeps `size` ephemeral sandboxes of one kind running and idle, and hands them out.

    ::

        async with SandboxPool(image="busybox", size=4) as pool:
            async with await pool.acquire() as sandbox:
                await sandbox.exec("true")

    It fills in the background from when it is entered, and again after each sandbox that it handed
    out or that ended. Its sandboxes end with it, and with this process however that ends; those it
    has handed out belong to who acquired them. It belongs to the event loop in which it was entered.
    """

    def __init__(
        self,
        *,
        image: ImageArgument,
        size: int,
        concurrency: int | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None:
        """`image` and `options`: as for `Sandbox.create`. `size`: sandboxes that are idle or being
        started at most, not counting those handed out. `concurrency`: how many of them are being
        started at the same time at most; by default as many as this machine has CPUs.

        Raises `ConfigError`, and `TypeError` for options that there are not, or not for a pool.
        """
        self._image = image
        self._size = _count(size, "size")
        if concurrency is None:
            concurrency = min(size, os.cpu_count() or 1)
        self._concurrency = _count(concurrency, "concurrency")
        self._options = _checked(options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: deque[Sandbox] = deque()
        self._waiters: deque[asyncio.Future[Sandbox]] = deque()
        self._awaiting_full: set[asyncio.Future[None]] = set()
        self._offered = 0  # given to a waiter whose task has not run since
        self._starting: set[asyncio.Task[Sandbox]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._failures = 0  # starts that failed since one succeeded
        self._deaths = 0  # sandboxes that ended while idle, since one was handed out
        self._pause: asyncio.TimerHandle | None = None
        self._draining: asyncio.Task[None] | None = None
        self._closed = False

    # ------------------------------------------------------------------------------------------ use

    @property
    def size(self) -> int:
        """How many sandboxes the pool keeps when it is full."""
        return self._size

    @property
    def idle(self) -> int:
        """How many sandboxes can be handed out at once, without a start."""
        return len(self._idle)

    async def acquire(self, timeout: float | None = None) -> Sandbox:
        """A running sandbox, which is the caller's from now on: an idle one, or else the next that is
        started. Callers that have to wait are served in the order in which they came.

        Raises `PoolClosed`, `TimeoutError` after `timeout` seconds, and what `Sandbox.create` raises
        when a start fails and no other one is under way. After a failure there is a pause before the
        next start, of at most `LONGEST_PAUSE` seconds: a caller that comes meanwhile waits for it.
        """
        async with asyncio.timeout(timeout):
            sandbox = self._take_idle() or await self._queue(self._waiters.append)
            while not _runs(sandbox):
                self._died(sandbox)
                sandbox = self._take_idle() or await self._queue(self._waiters.appendleft)
        self._deaths = 0
        self._fill()
        return sandbox

    async def wait_full(self, timeout: float | None = None) -> None:
        """Wait until `size` sandboxes are idle. Raises what `acquire` raises."""
        loop = self._opened()
        if len(self._idle) == self._size:
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._awaiting_full.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        finally:
            self._awaiting_full.discard(waiter)
            _mark_retrieved(waiter)

    async def close(self) -> None:
        """End the idle sandboxes and those being started, and wait until they are gone.

        Whoever waits for one gets `PoolClosed`. Those handed out go on. Closing again does nothing,
        but waits as well. When the caller is cancelled, closing goes on without it.
        """
        self._closed = True
        if self._loop is None:
            return
        if self._draining is None:
            self._draining = self._loop.create_task(self._drain(), name="msb-pool-close")
        await asyncio.shield(self._draining)

    async def __aenter__(self) -> Self:
        """Begin to fill the pool. Raises `ImageError` when there is no such image."""
        if self._closed:
            raise PoolClosed("the pool has been closed", hint="make another one")
        if self._loop is not None:
            raise RuntimeError("the pool has been entered already")
        await self._find_image()
        self._loop = asyncio.get_running_loop()
        self._fill()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -------------------------------------------------------------- what the tests of the logic replace

    async def _find_image(self) -> None:
        await asyncio.to_thread(
            _create.resolve_image,
            environment.home(),
            image_text(self._image),
            pull=self._options.get("pull_policy", "if-missing"),
            credentials=self._options.get("registry_auth"),
            insecure=self._options.get("registry_insecure", False),
        )

    async def _start(self) -> Sandbox:
        return await Sandbox.create(image=self._image, **self._options)

    def _call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, callback)

    # -------------------------------------------------------------------------------------- hand-out

    def _opened(self) -> asyncio.AbstractEventLoop:
        """The pool's event loop. Raises `PoolClosed`."""
        if self._closed:
            raise PoolClosed("the pool has been closed")
        if self._loop is None:
            raise PoolClosed("the pool has not been entered", hint="use it in `async with`")
        return self._loop

    def _take_idle(self) -> Sandbox | None:
        """The sandbox that has been idle longest, which may have ended; None if there is none."""
        loop = self._opened()
        if not self._idle:
            return None
        sandbox = self._idle.popleft()
        loop.remove_reader(_supervisor(sandbox).pidfd)
        return sandbox

    async def _queue(self, enqueue: Callable[[asyncio.Future[Sandbox]], None]) -> Sandbox:
        """Wait in line for a sandbox."""
        waiter: asyncio.Future[Sandbox] = self._opened().create_future()
        enqueue(waiter)
        self._fill()
        try:
            sandbox = await waiter
        except BaseException:
            if _mark_retrieved(waiter):
                # Cancelled between the offer and now: whoever is next gets it.
                self._offered -= 1
                self._offer(waiter.result())
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        self._offered -= 1
        return sandbox

    def _offer(self, sandbox: Sandbox) -> None:
        """Give a sandbox to the first in line; it is idle if there is nobody."""
        loop = self._loop
        assert loop is not None
        if self._closed:
            self._discard(sandbox)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._offered += 1
                waiter.set_result(sandbox)
                return
        self._idle.append(sandbox)
        loop.add_reader(_supervisor(sandbox).pidfd, self._on_death, sandbox)
        if len(self._idle) == self._size:
            for full in self._awaiting_full:
                if not full.done():
                    full.set_result(None)

    def _reject(self, error: BaseException) -> None:
        """Raise `error` from everyone who waits."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiters.clear()
        for full in self._awaiting_full:
            if not full.done():
                full.set_exception(error)

    # ---------------------------------------------------------------------------------------- refill

    def _fill(self) -> None:
        """Start as many sandboxes as are wanted and allowed now."""
        loop = self._loop
        if loop is None or self._closed or self._pause is not None:
            return
        # After a failure one start has to succeed before there are several again.
        limit = 1 if self._failures else self._concurrency
        wanted = self._size - len(self._idle) - self._offered
        while len(self._starting) < min(limit, wanted):
            task = loop.create_task(self._start(), name="msb-pool-start")
            self._starting.add(task)
            task.add_done_callback(self._on_started)

    def _on_started(self, task: asyncio.Task[Sandbox]) -> None:
        self._starting.discard(task)
        error = StartError("the start was cancelled") if task.cancelled() else task.exception()
        if error is None:
            self._failures = 0
            self._offer(task.result())
        elif not self._closed:
            # Starts that were under way together fail together: that is one failure.
            self._failures += self._pause is None
            self._back_off(self._failures)
            if not self._starting:
                self._reject(error)
        self._fill()

    def _on_death(self, sandbox: Sandbox) -> None:
        """The supervisor of an idle sandbox has ended."""
        assert self._loop is not None
        self._loop.remove_reader(_supervisor(sandbox).pidfd)
        self._idle.remove(sandbox)
        self._died(sandbox)

    def _died(self, sandbox: Sandbox) -> None:
        """Clean up after a sandbox that ended before it was handed out; another one takes its place.

        Not at once: guests that end by themselves would otherwise be started without a pause.
        """
        self._deaths += self._pause is None
        self._back_off(self._deaths)
        self._discard(sandbox)

    def _back_off(self, failures: int) -> None:
        """Start nothing for a time that grows with the number of failures in a row."""
        if self._pause is None and not self._closed:
            delay = min(FIRST_PAUSE * 2 ** min(failures - 1, 16), LONGEST_PAUSE)
            self._pause = self._call_later(delay, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._fill()

    # ------------------------------------------------------------------------------------------- end

    def _discard(self, sandbox: Sandbox) -> None:
        """End a sandbox that nobody has; `close` waits for it."""
        assert self._loop is not None
        task = self._loop.create_task(_end(sandbox), name="msb-pool-end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _drain(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._reject(PoolClosed("the pool was closed"))
        for task in self._starting:
            task.cancel()
        assert self._loop is not None
        while self._idle:
            sandbox = self._idle.popleft()
            self._loop.remove_reader(_supervisor(sandbox).pidfd)
            self._discard(sandbox)
        # What was just started when it was cancelled is discarded meanwhile.
        while tasks := self._starting | self._ending:
            await asyncio.wait(tasks)


async def _end(sandbox: Sandbox) -> None:
    try:
        await sandbox.kill()
    except (MicrosandboxError, OSError):
        # For example without a descriptor left for it. An attached sandbox ends without its lifeline
        # too, and the next command that looks cleans up.
        _supervisor(sandbox).close()


def _supervisor(sandbox: Sandbox) -> Supervisor:
    # Not sandbox._supervisor(): a descriptor of our own for each would be one more that can be lacking.
    assert sandbox._pending is not None  # it was created here, not found
    return sandbox._pending.supervisor


def _runs(sandbox: Sandbox) -> bool:
    """Whether the supervisor runs and its connection stands; it lets go of that when the guest ends."""
    poll = select.poll()
    poll.register(_supervisor(sandbox).pidfd, select.POLLIN)
    return not poll.poll(0) and not sandbox._client.closed


def _mark_retrieved(waiter: asyncio.Future[Sandbox] | asyncio.Future[None]) -> bool:
    """Whether a future has a result. Its error, if it has one instead, then counts as seen."""
    return waiter.done() and not waiter.cancelled() and waiter.exception() is None


def _count(value: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what}: expected int, not {type(value).__name__}")
    if value < 1:
        raise ConfigError(f"{what}: {value} is not above zero", hint=f"for example: {what}=4")
    return value


def _checked(options: SandboxOptions) -> SandboxOptions:
    """A copy of the options that later changes to them do not reach. Raises `ConfigError`, `TypeError`."""
    unknown = sorted(options.keys() - SandboxOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"SandboxPool() has no parameter {unknown[0]!r}")
    checked = options.copy()
    if "cpus" in options:
        _config.parse_cpus(options["cpus"])
    if "memory" in options:
        _config.parse_memory(options["memory"])
    if (hostname := options.get("hostname")) is not None:
        _config.check_hostname(hostname)
    if (entrypoint := options.get("entrypoint")) is not None:
        checked["entrypoint"] = tuple(entrypoint)
    if (cmd := options.get("cmd")) is not None:
        checked["cmd"] = tuple(cmd)
    if (env := options.get("env")) is not None:
        checked["env"] = dict(_config.check_env(env))
    if (scripts := options.get("scripts")) is not None:
        checked["scripts"] = dict(scripts)
    if (tmpfs := options.get("tmpfs")) is not None:
        checked["tmpfs"] = dict(tmpfs)
    if (volumes := options.get("volumes")) is not None:
        from microsandbox.mounts import with_mounts

        checked["volumes"] = dict(volumes)
        with_mounts(_config.SandboxConfig(), volumes)
    if "patches" in options:
        checked["patches"] = tuple(options["patches"])
    if (network := options.get("network")) is not None:
        from microsandbox.network import network_config

        if network_config(network).ports:
            raise ConfigError(
                "network: the sandboxes of a pool cannot all have the same ports of the host",
                hint="create those that publish ports with Sandbox.create",
            )
    if (labels := options.get("labels")) is not None:
        checked["labels"] = dict(labels)
    return checked
