"""A `Behaviour` on a real socket of this process: every fault there is, for either transport."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self

from rlbridge.errors import ContractError
from rlbridge.testing.behaviour import Answer, Behaviour
from rlbridge.testing.faults import FaultKind

SLOW_S: Final = 30.0


class GymServer:
    """A resources server on 127.0.0.1 in the running loop; use it with `async with`.

    Attributes:
        behaviour: what it answers; may be changed while it runs.
        delay_s: wait before every answer.
    """

    def __init__(self, behaviour: Behaviour | None = None, *, delay_s: float = 0.0) -> None:
        self.behaviour = Behaviour() if behaviour is None else behaviour
        self.delay_s = delay_s
        self._server: asyncio.Server | None = None
        self._port = 0
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The base URL; the same over a `stop` and a `start`."""
        if not self._port:
            raise ContractError("the GymServer isn't running; enter it with `async with`")
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port it had before if it had one."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self._port, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop every connection, as a killed process does."""
        if self._server is None:
            return
        self._server.close()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (asyncio runs it as a task)
        self._handlers.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            pass  # stopped, or the client went away
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await read_request(reader)
        if request is None:
            return False
        method, route, headers, body = request
        answer = self.behaviour.respond(method, route, body, headers.get("cookie", ""))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return await _send(answer, reader, writer)


async def read_request(
    reader: asyncio.StreamReader,
) -> tuple[str, str, dict[str, str], bytes] | None:
    """Method, path, headers (lower case) and body of the next request; None at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return method, target.partition("?")[0], headers, body


async def _send(answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Send an answer with its fault; False when the connection is done for."""
    if answer.fault is FaultKind.RESET:
        _reset(writer)
        return False
    if answer.fault is FaultKind.SLOW:
        await _wait_for_client(reader)
        return False
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines.append(f"content-length: {len(answer.body)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if answer.fault in (FaultKind.RESET_MID_BODY, FaultKind.SLOW_BODY):
        writer.write(head + answer.body[: len(answer.body) // 2])
        await writer.drain()
        if answer.fault is FaultKind.RESET_MID_BODY:
            _reset(writer)
        else:
            await _wait_for_client(reader)
        return False
    writer.write(head + answer.body)
    await writer.drain()
    return True


async def _wait_for_client(reader: asyncio.StreamReader) -> None:
    """Until the client gives up: its deadline, not a sleep, ends a test."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(1), SLOW_S)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock: Any = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.asynccontextmanager
async def gym_server(**behaviour: Any) -> AsyncIterator[GymServer]:
    """A running server; keywords are `Behaviour`'s.

    `async with gym_server(rewards=0.5) as server: GymClient(url=server.url)`
    """
    async with GymServer(Behaviour(**behaviour)) as server:
        yield server
