"""A verifier that costs next to nothing: a constant answer."""

import argparse
import asyncio
import contextlib
from collections.abc import Iterator

import orjson

from benchmarks.stub_http import Send, running, serve

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


class Verifier:
    """Answers every request after `delay_s`, and counts: how many, and how many at once."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._answer = answer()
        self._served = self._pending = self._peak = 0

    def __call__(self, head: bytes, body: bytes, send: Send) -> None:
        """Answer one request, or tell the counts to one for them."""
        if head.startswith(b"GET /counts"):
            counts = orjson.dumps({"served": self._served, "peak": self._peak})
            send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(counts) + counts)
            return
        self._served += 1
        if self._delay_s:
            self._pending += 1
            self._peak = max(self._peak, self._pending)
            asyncio.get_running_loop().call_later(self._delay_s, self._send_late, send)
        else:
            send(self._answer)

    def _send_late(self, send: Send) -> None:
        self._pending -= 1
        send(self._answer)


@contextlib.contextmanager
def running_stub(delay_s: float = 0.0) -> Iterator[str]:
    """The base URL of a stub in a process of its own; ended on leaving."""
    with running("benchmarks.stub_gym", "--delay-s", str(delay_s)) as (url, _):
        yield url


async def _main(delay_s: float) -> None:
    if not delay_s:
        _spin(asyncio.get_running_loop())
    await serve(Verifier(delay_s))


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
