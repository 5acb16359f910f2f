"""A verifier that costs next to nothing: a constant answer on raw sockets, in its own process."""

import argparse
import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import orjson

_COOKIE = (
    "StubResourcesServer___stub=eyJzZXNzaW9uX2lkIjogInMifQ==.a.b; path=/; Max-Age=1209600; "
    "httponly; samesite=lax"
)


def answer() -> bytes:
    """A 200 like mcqa's: the echo, the reward, the cookie."""
    text = "Which of the following genetic tests finds the mutation? " * 12
    body = orjson.dumps(
        {
            "responses_create_params": {
                "input": [{"content": text, "role": "user", "type": "message"}],
                "tools": [],
                **dict.fromkeys(("background", "include", "metadata", "model", "top_p")),
            },
            "response": {
                "id": "r",
                "created_at": 0.0,
                "output": [],
                **dict.fromkeys(("error", "usage", "text", "user", "truncation", "reasoning")),
            },
            "reward": 1.0,
            "expected_answer": "B",
        }
    )
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nset-cookie: {_COOKIE}\r\n\r\n"
    )
    return head.encode() + body


class Stub(asyncio.Protocol):
    """Answers every request after `delay_s`; knows just enough HTTP to find their ends."""

    answer = answer()
    served = 0
    pending = 0
    peak = 0

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the way back."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request in `data` and what came before."""
        self._buffer += data
        while True:
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            lower = head.lower()
            at = lower.find(b"content-length:")
            length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            if head.startswith(b"GET /counts"):
                counts = orjson.dumps({"served": Stub.served, "peak": Stub.peak})
                self._send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(counts) + counts)
                continue
            Stub.served += 1
            if self._delay_s:
                Stub.pending += 1
                Stub.peak = max(Stub.peak, Stub.pending)
                asyncio.get_running_loop().call_later(self._delay_s, self._send_late)
            else:
                self._send(self.answer)

    def _send_late(self) -> None:
        Stub.pending -= 1
        self._send(self.answer)

    def _send(self, reply: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(reply)


@contextlib.contextmanager
def running_stub(delay_s: float = 0.0) -> Iterator[str]:
    """The base URL of a stub in a process of its own; ended on leaving."""
    command = [sys.executable, "-m", "benchmarks.stub_gym", "--delay-s", str(delay_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"  # type: ignore[union-attr]
        finally:
            process.terminate()


async def _main(delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(delay_s), "127.0.0.1", 0, backlog=8192)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    if not delay_s:
        _spin(loop)
    await server.serve_forever()


def _spin(loop: asyncio.AbstractEventLoop) -> None:
    """Never sleep: on a virtual machine, waking a server costs its client more than a request.

    A client that is a little slower would find the stub asleep more often and pay for that too.
    """
    loop.call_soon(_spin, loop)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-s", type=float, default=0.0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args().delay_s))
