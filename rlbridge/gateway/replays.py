"""A request sent again by a client that never saw its answer: the answer, not another sample.

What counts as sent again: an idempotency key seen before, a retry count above zero, or an answer
that could not be delivered. Two equal requests without any of these are two samples of one call;
`rlbridge.onpolicy.build` trains those that the conversation went on from, or else the last.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from rlbridge.gateway.outcome import Outcome
from rlbridge.gateway.sessions import Session

# Answers remembered in a session; a client asks again for its latest.
_KEPT = 16


class Flight:
    """A request on its way, or answered.

    Attributes:
        answer: done once it is answered.
        waiting: how many clients wait for it now.
        lost: its answer could not be delivered.
    """

    __slots__ = ("answer", "lost", "waiting")

    def __init__(self, answer: "asyncio.Future[Outcome]") -> None:
        self.answer = answer
        self.waiting = 0
        self.lost = False


class Replays:
    """The latest answers of each session.

    Args:
        counts: `replayed` is counted here.
    """

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def holds(self, session: Session, key: str, again: bool) -> bool:
        """Whether this request needs no new sample."""
        flight: Flight | None = session.replies.get(key)
        return flight is not None and (again or flight.lost)

    async def answer(
        self, session: Session, key: str, again: bool, ask: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """The answer of this request's first attempt, or else of `ask`.

        Cancelled by the last client that waits, the request is given up.
        """
        if self.holds(session, key, again):
            flight: Flight = session.replies[key]
            flight.lost = False
            self._counts["replayed"] += 1
        else:
            flight = Flight(asyncio.ensure_future(ask()))
            self._put(session, key, flight)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.answer)
        except BaseException:
            if session.replies.get(key) is flight and flight.waiting == 1:
                del session.replies[key]
                flight.answer.cancel()
            raise
        finally:
            flight.waiting -= 1

    def keep(self, session: Session, key: str, outcome: Outcome) -> None:
        """Remember an answer that was streamed."""
        if session.anonymous:
            return
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        done.set_result(outcome)
        self._put(session, key, Flight(done))

    @staticmethod
    def lose(session: Session, key: str) -> None:
        """Say that an answer could not be delivered."""
        flight: Flight | None = session.replies.get(key)
        if flight is not None:
            flight.lost = True

    @staticmethod
    def _put(session: Session, key: str, flight: Flight) -> None:
        replies = session.replies
        replies.pop(key, None)
        replies[key] = flight
        while len(replies) > _KEPT:
            del replies[next(iter(replies))]
