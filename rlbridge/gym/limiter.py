"""How many requests a server gets at once: additive increase, multiplicative decrease.

The limit halves when the server says 429 or misses a deadline, at most once per generation of
requests (those sent before the cut can't tell anything about it), and grows by one for every
limit's worth of answers. Slots are handed over in the order of asking.
"""

import asyncio
from collections import deque

from rlbridge.config import GymConfig

_Slot = asyncio.Future[None]


class QueueTimeoutError(Exception):
    """No slot came free in time."""


class Limiter:
    """An adaptive semaphore for one event loop.

    Attributes:
        limit: requests that may be in flight now.
        in_use: requests that are.
    """

    __slots__ = (
        "_cut_at",
        "_max",
        "_min",
        "_queue_timeout_s",
        "_timer",
        "_waiters",
        "in_use",
        "limit",
    )

    def __init__(self, config: GymConfig) -> None:
        self._max = float(config.max_concurrency)
        self._min = float(config.min_concurrency)
        self._queue_timeout_s = config.queue_timeout_s
        self._waiters: deque[tuple[_Slot, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._cut_at = float("-inf")
        self.limit = self._max
        self.in_use = 0

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._waiters)

    def try_acquire(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self.in_use < self.limit and not self._waiters:
            self.in_use += 1
            return True
        return False

    async def acquire(self) -> None:
        """Take a slot, waiting in line.

        Raises:
            QueueTimeoutError: none came free within `queue_timeout_s`.
        """
        loop = asyncio.get_running_loop()
        slot: _Slot = loop.create_future()
        self._waiters.append((slot, loop.time() + self._queue_timeout_s))
        self._hand_over()  # those ahead may all have been cancelled
        if self._timer is None:
            self._timer = loop.call_later(self._queue_timeout_s, self._expire)
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled() and slot.exception() is None:
                self.release()  # handed over in the same turn as the cancellation
            raise

    def _expire(self) -> None:
        """Turn away those who waited too long; one timer for the head of the line."""
        loop = asyncio.get_running_loop()
        while self._waiters and self._waiters[0][1] <= loop.time():
            slot, _ = self._waiters.popleft()
            if not slot.done():
                slot.set_exception(QueueTimeoutError())
        self._timer = None
        if self._waiters:
            self._timer = loop.call_at(self._waiters[0][1], self._expire)

    def release(self) -> None:
        """Give a slot back, and hand free ones to those who wait."""
        self.in_use -= 1
        if self._waiters:
            self._hand_over()

    def _hand_over(self) -> None:
        while self._waiters and self.in_use < self.limit:
            slot, _ = self._waiters.popleft()
            if not slot.done():  # done: its caller was cancelled
                self.in_use += 1
                slot.set_result(None)

    def answered(self) -> None:
        """The server kept up: a little more."""
        if self.limit < self._max:
            self.limit = min(self._max, self.limit + 1.0 / self.limit)

    def overloaded(self, sent_at: float, now: float) -> None:
        """The server didn't keep up with a request sent at `sent_at`: half as much."""
        if sent_at >= self._cut_at:
            self._cut_at = now
            self.limit = max(self._min, self.limit / 2)
