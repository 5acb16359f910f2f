"""An engine that answers what a test tells it to, and a gateway on a real socket around it."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from benchmarks.templates import THINK
from benchmarks.tokenizers import byte_bpe
from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import SampledSpan
from rlbridge.engines.engine import Delta, EngineCall, EngineInfo, Generation
from rlbridge.gateway.app import create_app
from rlbridge.gateway.gateway import Gateway

TOKENIZER = byte_bpe(THINK)
MODEL = "policy"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Look something up.",
            "parameters": {
                "type": "object",
                "properties": {"key": {"type": "string"}, "n": {"type": "integer"}},
            },
        },
    }
]
CALL = '<think>\nI need it.\n</think>\n\nLooking.\n<tool_call>\n{"name": "lookup", "arguments": {"key": "a b", "n": 3}}\n</tool_call>'  # noqa: E501


def odd_ids(text: str) -> list[int]:
    """IDs of `text` as no tokenizer would write it: a letter at a time, marks whole."""
    ids: list[int] = []
    specials = [str(token) for token in TOKENIZER.added_tokens_decoder.values()]
    while text:
        mark = next((s for s in specials if text.startswith(s)), text[0])
        ids += TOKENIZER.encode(mark, add_special_tokens=False)
        text = text[len(mark) :]
    return ids


@dataclass
class ScriptedEngine:
    """Gives the answers it was told to, in order; an exception is raised, `ABORT` is an abort.

    Attributes:
        answers: texts, exceptions or finish reasons; a plain text when there are no more.
        tokens: whether it takes tokens.
        calls: what it was asked.
        gate: answers wait for it.
        left: how many calls were cancelled.
    """

    answers: deque[Any] = field(default_factory=deque)
    tokens: bool = True
    max_model_len: int = 100_000
    calls: list[EngineCall] = field(default_factory=list)
    gate: asyncio.Event | None = None
    left: int = 0

    async def info(self) -> EngineInfo:
        return EngineInfo(MODEL, "scripted", self.tokens, max_model_len=self.max_model_len)

    def _one(self, call: EngineCall) -> Generation:
        answer = self.answers.popleft() if self.answers else "All right."
        if isinstance(answer, Exception):
            raise answer
        finish = FinishReason.STOP
        if isinstance(answer, FinishReason):
            finish, answer = answer, "cut off"
        if not self.tokens:
            return Generation(None, answer, finish=finish)
        assert call.prompt is not None
        ids = odd_ids(answer) + ([TOKENIZER.eos_token_id] if finish is FinishReason.STOP else [])
        span = SampledSpan(ids, [-0.25] * len(ids), policy_version=7)
        turn = Turn(call.prompt, (span,), finish, sampling=call.sampling)
        return Generation(turn, answer, finish=finish, policy_version=7)

    async def generate(self, call: EngineCall) -> Sequence[Generation]:
        self.calls.append(call)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        return [self._one(call) for _ in range(call.n)]

    async def stream(self, call: EngineCall) -> AsyncIterator[Delta]:
        self.calls.append(call)
        done = self._one(call)
        try:
            if done.finish is not FinishReason.ABORT:
                for at in range(0, len(done.text), 3):
                    yield Delta(text=done.text[at : at + 3])
                    if self.gate is not None:
                        await self.gate.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.left += 1
            raise
        yield Delta(done=done)

    async def aclose(self) -> None:
        pass


@contextlib.asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[str]:
    """The base URL of a gateway served by uvicorn on loopback, in this loop."""
    config = uvicorn.Config(create_app(gateway), log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([sock]))
        try:
            while not server.started:  # noqa: ASYNC110 # uvicorn has no event for it
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
