"""The limiter and the breaker, each by itself."""

import asyncio

import pytest

from rlbridge.config import GymConfig
from rlbridge.gym.breaker import Breaker, ServerDownError, State
from rlbridge.gym.limiter import Limiter, QueueTimeoutError


def limiter(**fields: float) -> Limiter:
    return Limiter(GymConfig.parse({"max_concurrency": 16, **fields}))


def breaker(**fields: float) -> Breaker:
    quick = {"breaker_failures": 2, "breaker_probe_s": 0.01, "outage_patience_s": 5.0}
    return Breaker(GymConfig.parse({**quick, **fields}))


async def test_the_limit_halves_once_a_generation_and_grows_back() -> None:
    limit = limiter()
    limit.overloaded(sent_at=1.0, now=2.0)
    limit.overloaded(sent_at=1.5, now=2.1)  # sent before the cut: knows nothing of it
    assert limit.limit == 8
    limit.overloaded(sent_at=2.5, now=3.0)
    assert limit.limit == 4
    for _ in range(500):
        limit.answered()
    assert limit.limit == 16


async def test_the_limit_never_falls_below_its_floor() -> None:
    limit = limiter(min_concurrency=3)
    for moment in range(20):
        limit.overloaded(sent_at=moment, now=moment)
    assert limit.limit == 3


async def test_slots_are_handed_over_in_order_past_the_cancelled() -> None:
    limit = limiter(max_concurrency=1)
    assert limit.try_acquire()
    order: list[int] = []

    async def wait(name: int) -> None:
        await limit.acquire()
        order.append(name)
        limit.release()

    tasks = [asyncio.ensure_future(wait(name)) for name in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    limit.release()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert (limit.in_use, limit.queued) == (0, 0)


async def test_a_slot_handed_to_a_cancelled_caller_goes_on() -> None:
    limit = limiter(max_concurrency=1)
    assert limit.try_acquire()
    first, second = (asyncio.ensure_future(limit.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    limit.release()  # hands over to the first...
    first.cancel()  # ...which is cancelled before it runs
    await second
    assert limit.in_use == 1


async def test_the_line_has_an_end() -> None:
    limit = limiter(max_concurrency=1, queue_timeout_s=0.01)
    assert limit.try_acquire()
    with pytest.raises(QueueTimeoutError):
        await limit.acquire()
    limit.release()
    assert limit.try_acquire()


async def test_failures_in_a_row_open_and_one_probe_closes() -> None:
    down, now = breaker(), asyncio.get_running_loop().time()
    down.failed(now, probe=False)
    down.succeeded()
    down.failed(now, probe=False)
    assert down.state is State.CLOSED
    down.failed(now, probe=False)
    assert down.state is State.OPEN
    waiting = [asyncio.ensure_future(down.admit()) for _ in range(3)]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [True]
    down.succeeded()
    assert await asyncio.gather(*rest) == [False, False]


async def test_a_cancelled_probe_leaves_the_probe_to_the_next() -> None:
    down = breaker(breaker_failures=1)
    now = asyncio.get_running_loop().time()
    down.failed(now, probe=False)
    assert await down.admit()
    down.probe_dropped(now)
    assert await down.admit()


async def test_patience_is_spent_once_an_outage() -> None:
    down = breaker(breaker_failures=1, outage_patience_s=0.0, breaker_probe_s=60.0)
    down.failed(asyncio.get_running_loop().time(), probe=False)
    with pytest.raises(ServerDownError):
        await down.admit()
