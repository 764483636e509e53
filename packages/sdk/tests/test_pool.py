"""The logic of a pool, with sandboxes that are nothing but a descriptor."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Unpack, cast

import pytest
from microsandbox import ConfigError, PoolClosed, Sandbox, SandboxOptions, SandboxPool, StartError
from microsandbox._create import Pending
from microsandbox.pool import FIRST_PAUSE, LONGEST_PAUSE
from microsandbox_core.agent import AgentClient

pytestmark = pytest.mark.asyncio


class FakeSandbox(Sandbox):
    """Runs until `die` or `kill`."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        self._lifeline = ours
        supervisor = SimpleNamespace(pidfd=ours.fileno(), close=ours.close)
        self._pending = cast(Pending, SimpleNamespace(supervisor=supervisor))
        self._client = cast(AgentClient, SimpleNamespace(closed=False))
        self.killed = False

    def die(self) -> None:
        """As if the supervisor had ended: its pidfd becomes readable."""
        self._theirs.close()

    def lose_guest(self) -> None:
        """As if the guest had ended and the supervisor was about to."""
        self._client = cast(AgentClient, SimpleNamespace(closed=True))

    async def kill(self) -> None:
        await asyncio.sleep(0)
        self._theirs.close()
        self._lifeline.close()
        self.killed = True


class FakePool(SandboxPool):
    """Starts end when the test says so, pauses too."""

    def __init__(
        self, *, size: int, concurrency: int | None = None, **options: Unpack[SandboxOptions]
    ) -> None:
        super().__init__(image="image", size=size, concurrency=concurrency, **options)
        self.starts: list[asyncio.Future[Sandbox]] = []
        self.made: list[FakeSandbox] = []
        self.cancelled = 0
        self.pauses: list[float] = []
        self.resume: Callable[[], None] = lambda: None

    async def _find_image(self) -> None:
        pass

    async def _start(self) -> Sandbox:
        start: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        self.starts.append(start)
        try:
            return await start
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.starts.remove(start)

    def _call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.pauses.append(delay)
        self.resume = callback
        return asyncio.get_running_loop().call_later(1 << 20, callback)

    async def finish(self, count: int = 1) -> None:
        """Let the oldest starts succeed."""
        for _ in range(count):
            self.made.append(FakeSandbox())
            self.starts[0].set_result(self.made[-1])
            await settled()

    async def fail(self, count: int = 1) -> None:
        """Let all starts that are under way fail at the same time."""
        assert len(self.starts) == count
        for start in self.starts:
            start.set_exception(StartError("no"))
        await settled()

    def left(self) -> list[FakeSandbox]:
        """The sandboxes that have not been killed."""
        return [sandbox for sandbox in self.made if not sandbox.killed]


async def settled() -> None:
    """Every task has gone as far as it can: nothing here waits for more than a few turns of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("option", ["name", "detached", "ephemeral", "flavour"])
async def test_options_that_a_pool_does_not_have(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        SandboxPool(image="image", size=1, **cast(Any, {option: True}))


async def test_every_other_option_of_create_is_one_of_a_pool() -> None:
    of_create = set(inspect.signature(Sandbox.create).parameters)
    of_names = {"name", "image", "ephemeral", "detached", "replace", "replace_with_timeout", "progress"}
    of_names.add("ports")  # a port of the host is as good as a name: one sandbox has it
    # Nor do limits in time fit sandboxes that wait for somebody to take them.
    limits = {"max_duration", "idle_timeout"}
    assert of_create - of_names - limits == set(SandboxOptions.__annotations__)


@pytest.mark.parametrize(
    "parameters",
    [
        {"size": 0},
        {"size": 1, "concurrency": 0},
        {"size": 1, "memory": "1M"},
        {"size": 1, "cpus": 0},
        {"size": 1, "hostname": "a b"},
        {"size": 1, "env": {"": "x"}},
    ],
)
async def test_values_that_cannot_be(parameters: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SandboxPool(image="image", **parameters)
    assert caught.value.hint


async def test_it_fills_up_to_its_size_and_no_more_than_so_many_at_once() -> None:
    async with FakePool(size=5, concurrency=2) as pool:
        full = asyncio.create_task(pool.wait_full())
        for idle in range(5):
            await settled()
            assert (pool.idle, len(pool.starts)) == (idle, min(2, 5 - idle))
            assert not full.done()
            await pool.finish()
        await full
        await pool.wait_full()
        assert (pool.idle, pool.size, pool.starts) == (5, 5, [])
    assert (pool.idle, pool.left()) == (0, [])


async def test_an_idle_one_is_handed_out_without_waiting_and_replaced() -> None:
    async with FakePool(size=2) as pool:
        await settled()
        await pool.finish(2)
        got = await pool.acquire(timeout=0)
        assert (got, pool.idle) == (pool.made[0], 1)
        await settled()
        assert len(pool.starts) == 1
    assert pool.left() == [got], "what was handed out is not the pool's any more"
    await got.kill()


async def test_whoever_waits_is_served_in_order_and_the_bound_holds() -> None:
    async with FakePool(size=2, concurrency=2) as pool:
        served: list[int] = []

        async def one(number: int) -> Sandbox:
            sandbox = await pool.acquire()
            served.append(number)
            return sandbox

        tasks = [asyncio.create_task(one(number)) for number in range(7)]
        await settled()
        for _ in tasks:
            assert len(pool.starts) == 2
            await pool.finish()
        assert served == list(range(7))
        assert len({await task for task in tasks}) == 7
        for task in tasks:
            await (await task).kill()


async def test_a_cancelled_waiter_loses_its_turn_and_nothing_else() -> None:
    async with FakePool(size=1) as pool:
        first, second = (asyncio.create_task(pool.acquire()) for _ in range(2))
        await settled()
        first.cancel()
        await settled()
        await pool.finish()
        assert first.cancelled()
        assert await second is pool.made[0]
        await (await second).kill()
    assert pool.left() == []


@pytest.mark.parametrize("others", [0, 1])
async def test_a_waiter_that_is_cancelled_after_the_offer_passes_it_on(others: int) -> None:
    async with FakePool(size=1) as pool:
        first = asyncio.create_task(pool.acquire())
        next_ones = [asyncio.create_task(pool.acquire()) for _ in range(others)]
        await settled()
        # The offer is made here and now, so that the waiter's task has not run since.
        pool.made.append(FakeSandbox())
        pool._offer(pool.made[0])
        first.cancel()
        await settled()
        assert first.cancelled()
        assert [await task for task in next_ones] == pool.made[:others]
        assert pool.idle == 1 - others
        for task in next_ones:
            await (await task).kill()
    assert pool.left() == []


async def test_a_time_limit() -> None:
    async with FakePool(size=1) as pool:
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.01)
        with pytest.raises(TimeoutError):
            await pool.wait_full(timeout=0.01)
        await pool.finish()
        assert pool.idle == 1


async def test_one_that_died_is_replaced_after_a_pause() -> None:
    async with FakePool(size=2, concurrency=2) as pool:
        await settled()
        await pool.finish(2)
        pool.made[0].die()
        await settled()
        assert (pool.idle, pool.left(), pool.pauses) == (1, [pool.made[1]], [FIRST_PAUSE])
        pool.resume()
        await settled()
        await pool.finish()
        assert pool.idle == 2


@pytest.mark.parametrize("end", [FakeSandbox.die, FakeSandbox.lose_guest])
async def test_one_that_has_just_died_is_not_handed_out(end: Callable[[FakeSandbox], None]) -> None:
    async with FakePool(size=2, concurrency=2) as pool:
        await settled()
        await pool.finish(2)
        end(pool.made[0])
        got = await pool.acquire()
        assert got is pool.made[1]
        await got.kill()


async def test_one_that_dies_between_offer_and_hand_out_costs_no_turn() -> None:
    async with FakePool(size=1) as pool:
        tasks = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        await settled()
        pool.made.append(FakeSandbox())
        pool._offer(pool.made[0])
        pool.made[0].die()
        await settled()
        assert pool.made[0].killed
        await pool.finish()
        assert await tasks[0] is pool.made[1]
        assert not tasks[1].done()
        tasks[1].cancel()
        await (await tasks[0]).kill()


async def test_guests_that_always_die_are_started_ever_more_slowly() -> None:
    async with FakePool(size=1) as pool:
        for _ in range(4):
            await settled()
            await pool.finish()
            pool.made[-1].die()
            await settled()
            assert pool.starts == []
            pool.resume()
        assert pool.pauses == [FIRST_PAUSE * 2**n for n in range(4)]


async def test_a_failed_start_reaches_whoever_waits() -> None:
    async with FakePool(size=2, concurrency=2) as pool:
        tasks = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        full = asyncio.create_task(pool.wait_full())
        await settled()
        await pool.fail(2)
        for task in (*tasks, full):
            with pytest.raises(StartError, match="no"):
                await task


async def test_a_failure_next_to_a_start_under_way_is_nobodys() -> None:
    async with FakePool(size=2, concurrency=2) as pool:
        task = asyncio.create_task(pool.acquire())
        await settled()
        pool.starts[0].set_exception(StartError("no"))
        await settled()
        assert not task.done()
        await pool.finish()
        await (await task).kill()


async def test_failures_back_off_and_a_success_ends_that() -> None:
    async with FakePool(size=3, concurrency=3) as pool:
        await settled()
        await pool.fail(3)
        for _ in range(12):
            assert pool.starts == [], "it pauses"
            pool.resume()
            await settled()
            await pool.fail(1)
        assert pool.pauses[:4] == [FIRST_PAUSE * 2**n for n in range(4)]
        assert pool.pauses[-1] == LONGEST_PAUSE
        waiting = asyncio.create_task(pool.acquire())
        await settled()
        assert pool.starts == [], "a caller does not shorten the pause"
        pool.resume()
        await settled()
        await pool.finish()
        assert len(pool.starts) == 3
        await (await waiting).kill()
        await pool.fail(3)
        assert pool.pauses[-1] == FIRST_PAUSE


async def test_closing_ends_everything_once() -> None:
    pool = FakePool(size=3, concurrency=2)
    async with pool:
        await settled()
        await pool.finish(1)
        got = await pool.acquire()
        await settled()
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(2)]
        full = asyncio.create_task(pool.wait_full())
        await settled()
        await asyncio.gather(pool.close(), pool.close())
        assert (pool.cancelled, pool.starts, pool.left()) == (2, [], [got])
        for task in (*waiting, full):
            with pytest.raises(PoolClosed):
                await task
        for use in (pool.acquire, pool.wait_full):
            with pytest.raises(PoolClosed):
                await use()
    await pool.close()
    with pytest.raises(PoolClosed):
        async with pool:
            pass
    await got.kill()


async def test_what_is_started_in_the_moment_of_closing_is_not_lost() -> None:
    pool = FakePool(size=2, concurrency=2)
    async with pool:
        await settled()
        for start in tuple(pool.starts):
            pool.made.append(FakeSandbox())
            start.set_result(pool.made[-1])
        await asyncio.sleep(0)  # the starts have returned, the pool has not heard of it
    assert [sandbox.killed for sandbox in pool.made] == [True, True]


async def test_closing_goes_on_when_its_caller_is_cancelled() -> None:
    pool = FakePool(size=1)
    await pool.__aenter__()
    await settled()
    await pool.finish()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    closing.cancel()
    await settled()
    assert closing.cancelled()
    assert pool.left() == []


async def test_an_error_in_the_body_passes_and_the_pool_is_closed() -> None:
    pool = FakePool(size=1)

    async def use() -> None:
        async with pool:
            await settled()
            await pool.finish()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert pool.made[0].killed


async def test_it_has_to_be_entered_once() -> None:
    pool = FakePool(size=1)
    with pytest.raises(PoolClosed, match="entered"):
        await pool.acquire()
    async with pool:
        with pytest.raises(RuntimeError):
            await pool.__aenter__()
    unused = FakePool(size=1)
    await unused.close()
    with pytest.raises(PoolClosed):
        await unused.acquire()
