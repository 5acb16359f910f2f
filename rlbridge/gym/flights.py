"""Equal questions that are out at the same time share one answer.

No tasks: the first asker asks in its own task, the others wait for its future. When the first
is cancelled, the next takes over, so that nobody gets a stranger's cancellation.
"""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """Answers under way, by key, on one event loop.

    The first asker calls `start` and, whatever happens, `land`; whoever finds `busy` waits in
    `join`.
    """

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: dict[bytes, asyncio.Future[T | None] | None] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def busy(self, key: bytes) -> bool:
        """Whether somebody is asking."""
        return key in self._flights

    def start(self, key: bytes) -> None:
        """Ask, for oneself and for those who join."""
        self._flights[key] = None  # the first to join makes the future; most have nobody

    async def join(self, key: bytes) -> T | None:
        """The answer, or None if its asker went away without one."""
        flight = self._flights[key]
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(flight)

    def land(self, key: bytes, answer: T | None) -> None:
        """Hand the answer, or None, to all who joined."""
        flight = self._flights.pop(key)
        if flight is not None and not flight.done():
            flight.set_result(answer)
