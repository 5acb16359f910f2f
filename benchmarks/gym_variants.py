"""The clients that `benchmarks.gym_client` compares, each as one coroutine function a request."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rlbridge.config import GymConfig
from rlbridge.gym import GymClient

Ask = Callable[[int], Awaitable[float]]
Variant = contextlib.AbstractAsyncContextManager[Ask]

ROW: dict[str, Any] = {
    "responses_create_params": {
        "input": [{"role": "user", "content": "Which of the following genetic tests? " * 18}]
    },
    "options": [{letter: f"choice {letter}"} for letter in "ABCDEFGHIJ"],
    "expected_answer": "B",
    "grading_mode": "strict_single_letter_boxed",
    "uuid": "3c26f339-4b88-54be-b72a-e9c438ca6335",
}


def text(index: int) -> str:
    return f"Let me think about number {index}. The answer is \\boxed{{B}}."


def full_body(index: int) -> dict[str, Any]:
    part = {"type": "output_text", "text": text(index), "annotations": []}
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    return {
        **ROW,
        "response": {
            "id": "r",
            "created_at": 0,
            "model": "policy",
            "object": "response",
            "output": [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        },
    }


@contextlib.asynccontextmanager
async def floor(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """Bare aiohttp + orjson: no deadline, no retry, no check, no limit."""
    import aiohttp
    import orjson

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(index: int) -> float:
            data = orjson.dumps(full_body(index))
            async with session.post(f"{url}/verify", data=data, headers=headers) as answer:
                return float(orjson.loads(await answer.read())["reward"])

        yield ask


@contextlib.asynccontextmanager
async def _ours(config: GymConfig) -> AsyncIterator[Ask]:
    async with GymClient(config) as gym:

        async def ask(index: int) -> float:
            reward = await gym.verify(ROW, text(index))
            if not reward.valid:
                raise RuntimeError(reward.detail)
            return reward.value

        yield ask


def ours(url: str, concurrency: int) -> Variant:
    """`GymClient` with everything on: sharing, cache, limiter, breaker, deadlines, counters."""
    return _ours(GymConfig(url=url, cache="memory", keepalive_s=60))


def ours_unbounded(url: str, concurrency: int) -> Variant:
    """The same with as many requests on the wire as there are calls."""
    return _ours(GymConfig(url=url, cache="memory", keepalive_s=60, max_concurrency=concurrency))


@contextlib.asynccontextmanager
async def httpx_bare(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """Bare httpx + orjson."""
    import httpx
    import orjson

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    headers = {"Content-Type": "application/json"}
    async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as client:  # noqa: S113

        async def ask(index: int) -> float:
            data = orjson.dumps(full_body(index))
            answer = await client.post(f"{url}/verify", content=data, headers=headers)
            return float(orjson.loads(answer.content)["reward"])

        yield ask


@contextlib.asynccontextmanager
async def wrapper(url: str, concurrency: int) -> AsyncIterator[Ask]:
    """The pattern that documents show: one aiohttp session as it comes, the standard json."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=30.0)
    async with aiohttp.ClientSession(timeout=timeout, json_serialize=json.dumps) as session:

        async def ask(index: int) -> float:
            async with session.post(f"{url}/verify", json=full_body(index)) as answer:
                return float((await answer.json()).get("reward", 0.0))

        yield ask


VARIANTS: dict[str, Callable[[str, int], Variant]] = {
    "floor": floor,
    "ours": ours,
    "ours_unbounded": ours_unbounded,
    "httpx": httpx_bare,
    "wrapper": wrapper,
}
