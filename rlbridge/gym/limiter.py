"""How many requests a server gets at once: additive increase, multiplicative decrease.

The limit halves when the server says 429 or misses a deadline, at most once per generation of
requests (those sent before the cut can't tell anything about it), and grows by one for every
limit's worth of answers. Slots are handed over in the order of asking.
"""

import asyncio
from collections import deque

from rlbridge.config import GymConfig


class QueueTimeoutError(Exception):
    """No slot came free in time."""


class Limiter:
    """An adaptive semaphore for one event loop.

    Attributes:
        limit: requests that may be in flight now.
        in_use: requests that are.
    """

    __slots__ = ("_cut_at", "_max", "_min", "_queue_timeout_s", "_waiters", "in_use", "limit")

    def __init__(self, config: GymConfig) -> None:
        self._max = float(config.max_concurrency)
        self._min = float(config.min_concurrency)
        self._queue_timeout_s = config.queue_timeout_s
        self._waiters: deque[asyncio.Future[None]] = deque()
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
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(slot)
        self._hand_over()  # those ahead may all have been cancelled
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled():
                self.release()  # handed over in the same turn as the cancellation
            if isinstance(error, TimeoutError):
                raise QueueTimeoutError from error
            raise

    def release(self) -> None:
        """Give a slot back, and hand free ones to those who wait."""
        self.in_use -= 1
        if self._waiters:
            self._hand_over()

    def _hand_over(self) -> None:
        while self._waiters and self.in_use < self.limit:
            slot = self._waiters.popleft()
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
