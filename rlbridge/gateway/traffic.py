"""Calls on their way through the gateway: counted, and refused once it drains."""

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

from rlbridge.gateway.ask import Ask
from rlbridge.gateway.conversations import Conversations
from rlbridge.gateway.errors import draining
from rlbridge.gateway.events import Pieces, first_piece
from rlbridge.gateway.exchange import Caller
from rlbridge.gateway.outcome import Outcome


class Traffic:
    """The door to the conversations.

    Args:
        talk: answers what is let in.

    Attributes:
        in_flight: calls being answered now.
    """

    def __init__(self, talk: Conversations) -> None:
        self._talk = talk
        self._draining = False
        self.in_flight = 0

    def drain(self) -> None:
        """Refuse new calls from now on; those in flight go on."""
        self._draining = True

    async def asked(self, asking: Coroutine[Any, Any, Ask]) -> Ask:
        """What a request asks.

        Raises:
            ApiError: 503 while the gateway drains; else what is wrong with the request.
        """
        if self._draining:
            asking.close()
            raise draining()
        return await asking

    async def answer(self, ask: Ask, caller: Caller) -> Outcome:
        """See `Conversations.answer`."""
        self.in_flight += 1
        try:
            return await self._talk.answer(ask, caller)
        finally:
            self.in_flight -= 1

    async def pieces(self, ask: Ask, caller: Caller) -> Pieces:
        """The pieces of an answer; what fails before the first of them raises here."""

        async def counted() -> Pieces:
            self.in_flight += 1
            try:
                async with aclosing(self._talk.stream(ask, caller)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                self.in_flight -= 1

        return await first_piece(counted())


async def together(asks: list[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """All outcomes; the first failure ends the rest."""
    if len(asks) == 1:
        return [await asks[0]]
    tasks = [asyncio.ensure_future(ask) for ask in asks]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
