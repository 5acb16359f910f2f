"""A fake's HTTP on a real socket: a server, and one request with the ways to answer it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import orjson

from rlbridge.errors import ContractError


@dataclass(slots=True)
class Exchange:
    """One request, and the ways to answer it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    method: str
    route: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def client_left(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.reader.at_eof() or self.writer.transport.is_closing()

    async def send(
        self, status: int, body: Any, kind: str = "application/json", *, half: bool = False
    ) -> bool:
        """A whole answer; True while the connection lives. With `half`, half of it and a reset."""
        data = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        if half:
            self.writer.write(head.encode() + data[: len(data) // 2])
            await self.writer.drain()
            self.reset()
            return False
        self.writer.write(head.encode() + data)
        await self.writer.drain()
        return True

    def start_stream(self) -> None:
        """The head of a stream."""
        self.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def piece(self, data: bytes) -> None:
        """A piece of a stream."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def end_stream(self) -> bool:
        """The end of a stream."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        return True

    async def wait_for_client(self, limit_s: float) -> None:
        """Until the client gives up: its deadline, not a sleep, ends a test."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), limit_s)

    def reset(self) -> None:
        """Reset the connection."""
        sock: Any = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class LocalServer:
    """Listens on 127.0.0.1 in the running loop; use it with `async with`."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._port = 0
        self._handlers: set[asyncio.Task[None]] = set()

    async def answer(self, exchange: Exchange) -> bool:
        """Answer one request; False when the connection is done for."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The base URL without `/v1`; the same over a `stop` and a `start`."""
        if not self._port:
            raise ContractError("the server isn't running; enter it with `async with`")
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
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
            while (request := await read_request(reader)) is not None:
                if not await self.answer(Exchange(reader, writer, *request)):
                    break
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            pass  # stopped, or the client went away
        finally:
            self._handlers.discard(task)
            writer.transport.abort()


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
