"""Equal questions that are out at the same time share one answer.

No tasks: the first asker asks in its own task, the others wait for its future. When the first
is cancelled, the next takes over, so that nobody gets a stranger's cancellation.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """Answers under way, by key, on one event loop."""

    def __init__(self) -> None:
        self._flights: dict[bytes, asyncio.Future[T | None] | None] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def share(self, key: bytes, ask: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The answer, and whether somebody else's asking brought it."""
        while key in self._flights:
            flight = self._flights[key]
            if flight is None:  # the first to wait makes the future; most flights have nobody
                flight = self._flights[key] = asyncio.get_running_loop().create_future()
            answer = await asyncio.shield(flight)
            if answer is not None:
                return answer, True
        self._flights[key] = None
        answer = None
        try:
            answer = await ask()
        finally:
            flight = self._flights.pop(key)
            if flight is not None and not flight.done():
                flight.set_result(answer)  # None: the asker is gone, ask again
        return answer, False
