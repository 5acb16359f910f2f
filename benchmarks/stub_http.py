"""Servers that cost next to nothing: HTTP on raw sockets, in a process of their own.

They read what the benchmarks' clients send and no more: no chunked bodies, no keep-alive rules.
"""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

Send = Callable[[bytes], None]
Handler = Callable[[bytes, bytes, Send], None]
"""Takes a request: its head, its body, and what sends the reply, at once or later."""


class _Connection(asyncio.Protocol):
    """Finds the ends of requests."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand on each whole request in `data` and what came before."""
        self._buffer += data
        while True:
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            lower = head.lower()
            at = lower.find(b"content-length:")
            length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if b"transfer-encoding: chunked" in lower:
                raise RuntimeError("the stub reads bodies with a content-length only")
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._handle(head, rest[:length], self._send)

    def _send(self, reply: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(reply)


async def serve(handle: Handler, port: int = 0) -> None:
    """Serve on 127.0.0.1 for ever; tells the port, 0 being any, on standard output."""
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(handle), "127.0.0.1", port, backlog=8192
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


@contextlib.contextmanager
def running(module: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """Base URL and process ID of a module that serves so; ended on leaving."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline())  # type: ignore[union-attr]
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
