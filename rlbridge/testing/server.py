"""A `Behaviour` on a real socket of this process: every fault there is, for either transport."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Final

from rlbridge.testing.behaviour import Answer, Behaviour
from rlbridge.testing.exchange import Exchange, LocalServer
from rlbridge.testing.faults import FaultKind

SLOW_S: Final = 30.0


class GymServer(LocalServer):
    """A resources server on 127.0.0.1 in the running loop; use it with `async with`.

    Attributes:
        behaviour: what it answers; may be changed while it runs.
        delay_s: wait before every answer.
    """

    def __init__(self, behaviour: Behaviour | None = None, *, delay_s: float = 0.0) -> None:
        super().__init__()
        self.behaviour = Behaviour() if behaviour is None else behaviour
        self.delay_s = delay_s

    async def answer(self, exchange: Exchange) -> bool:
        """Answer one request as the behaviour says; False when the connection is done for."""
        cookie = exchange.headers.get("cookie", "")
        answer = self.behaviour.respond(exchange.method, exchange.route, exchange.raw, cookie)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return await _send(answer, exchange)


async def _send(answer: Answer, exchange: Exchange) -> bool:
    """Send an answer with its fault; False when the connection is done for."""
    if answer.fault is FaultKind.RESET:
        exchange.reset()
        return False
    if answer.fault is FaultKind.SLOW:
        await exchange.wait_for_client(SLOW_S)
        return False
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines.append(f"content-length: {len(answer.body)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    writer = exchange.writer
    if answer.fault in (FaultKind.RESET_MID_BODY, FaultKind.SLOW_BODY):
        writer.write(head + answer.body[: len(answer.body) // 2])
        await writer.drain()
        if answer.fault is FaultKind.RESET_MID_BODY:
            exchange.reset()
        else:
            await exchange.wait_for_client(SLOW_S)
        return False
    writer.write(head + answer.body)
    await writer.drain()
    return True


@contextlib.asynccontextmanager
async def gym_server(**behaviour: Any) -> AsyncIterator[GymServer]:
    """A running server; keywords are `Behaviour`'s.

    `async with gym_server(rewards=0.5) as server: GymClient(url=server.url)`
    """
    async with GymServer(Behaviour(**behaviour)) as server:
        yield server
