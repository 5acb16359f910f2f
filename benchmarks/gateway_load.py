"""A load generator for model servers that costs little: bytes made before, raw sockets.

Each session is a client with one connection that sends its turns one after another, the next
when the last was answered whole. Bodies are the same for all sessions and are encoded once.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson
import psutil


@dataclass(frozen=True)
class Load:
    """What one run of sessions cost.

    Attributes:
        latencies_s: of every request, sorted unless asked otherwise.
        wall_s: from the first request to the last answer.
        client_cpu: CPU seconds of this process a second of wall time.
        server_cpu_us: CPU microseconds a request of the server under test.
        failures: answers that were no 200.
    """

    latencies_s: tuple[float, ...]
    wall_s: float
    client_cpu: float
    server_cpu_us: float

    @property
    def requests_per_s(self) -> float:
        """Requests a second."""
        return len(self.latencies_s) / self.wall_s

    def percentile_ms(self, percent: int) -> float:
        """Latency that `percent` of the requests stayed within."""
        if len(self.latencies_s) == 1:
            return self.latencies_s[0] * 1e3
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[percent - 1] * 1e3


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request out at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answered: asyncio.Future[int] | None = None
        self._length = -1
        self.failure = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(f"closed before an answer: {exc}"))

    def ask(self, request: bytes) -> "asyncio.Future[int]":
        """Send; the future is the answer's status."""
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._length < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            if at < 0:
                raise RuntimeError(f"an answer without a content-length: {head!r}")
            self._length = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < self._length:
            return
        status = int(self._buffer[9:12])
        if status != 200:
            self.failure = self._buffer[:600]
        self._buffer, self._length = b"", -1
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(status)


async def drive(
    url: str,
    path: Callable[[str], str],
    bodies: Sequence[bytes],
    sessions: Sequence[str],
    *,
    at_once: int,
    pid: int | None = None,
    in_order: bool = False,
) -> Load:
    """Play `sessions`, `at_once` of them at a time, each sending all `bodies` in turn.

    Args:
        url: the server's base URL.
        path: the route of a session's calls.
        bodies: JSON bodies of the turns.
        sessions: their IDs.
        at_once: sessions, and so connections, at the same time.
        pid: the server's process, whose CPU time is measured; None measures none.
        in_order: leave the latencies in the order of the answers.

    Raises:
        RuntimeError: an answer was no 200; with its beginning.
    """
    target = urlsplit(url)
    loop = asyncio.get_running_loop()
    tails = [
        b" HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (target.netloc.encode(), len(body), body)
        for body in bodies
    ]
    waiting = iter(sessions)
    latencies: list[float] = []

    async def client() -> None:
        _, connection = await loop.create_connection(_Connection, target.hostname, target.port)
        await ready.wait()
        for session in waiting:
            line = f"POST {path(session)}".encode()
            for tail in tails:
                start = time.perf_counter()
                status = await connection.ask(line + tail)
                latencies.append(time.perf_counter() - start)
                if status != 200:
                    raise RuntimeError(f"{url} answered {connection.failure!r}")
        connection.transport.close()

    ready = asyncio.Event()
    clients = [asyncio.create_task(client()) for _ in range(at_once)]
    await asyncio.sleep(0.05 if at_once < 100 else 0.5)  # connections are not what is measured
    server = psutil.Process(pid) if pid is not None else None
    gc.collect()
    gc.disable()
    try:
        server_before, own_before = _cpu_s(server), time.process_time()
        start = time.perf_counter()
        ready.set()
        await asyncio.gather(*clients)
        wall_s = time.perf_counter() - start
    finally:
        gc.enable()
        for task in clients:
            task.cancel()
    count = len(latencies)
    return Load(
        tuple(latencies if in_order else sorted(latencies)),
        wall_s,
        (time.process_time() - own_before) / wall_s,
        (_cpu_s(server) - server_before) / count * 1e6,
    )


def _cpu_s(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)


def chat_bodies(
    question: str, answer: str, turns: int, *, model: str, **fields: object
) -> list[bytes]:
    """A conversation's requests as an ordinary chat client sends them: the whole history."""
    messages: list[dict[str, str]] = [{"role": "system", "content": "You are terse."}]
    bodies = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{turn}: {question}"})
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": 64,
            "temperature": 1.0,
            **fields,
        }
        bodies.append(orjson.dumps(body))
        messages.append({"role": "assistant", "content": answer})
    return bodies
