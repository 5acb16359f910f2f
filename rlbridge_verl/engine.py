"""verl's server manager as a gateway's `Engine`: exact tokens in, exact tokens out.

Calls belong to rollouts that verl started: each session is opened with verl's sampling parameters,
and they win over the client's. A call without such a session is refused, for nobody could say with
which parameters, and for whose training, it samples.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.engines.engine import Delta, EngineCall, EngineInfo, Generation
from rlbridge.errors import EngineError
from rlbridge_verl.calls import ServerCalls

# What a client may still say: how long an answer is and where it stops.
_CLIENTS = ("stop", "stop_token_ids", "max_tokens", "max_completion_tokens", "max_output_tokens")
_LENGTHS = _CLIENTS[2:]


@dataclass(slots=True)
class _Open:
    calls: ServerCalls
    response_tokens: int


class VerlEngine:
    """An `Engine` over verl's server manager, for the rollouts of one worker process.

    Args:
        tokenizer: the policy's.
        model: the name clients call it by.
        max_model_len: the engine's context in tokens.
    """

    def __init__(self, tokenizer: Any, *, model: str, max_model_len: int | None) -> None:
        self._tokenizer = tokenizer
        self._info = EngineInfo(model, "verl", tokens=True, max_model_len=max_model_len)
        self._open: dict[str, _Open] = {}
        self.preempted: dict[str, int] = {}
        """Preemptions by session; -1 where the engine doesn't say."""

    def open(self, session: str, calls: ServerCalls, response_tokens: int) -> None:
        """Let `session` sample, with these parameters, `response_tokens` a call at most."""
        self._open[session] = _Open(calls, response_tokens)
        self.preempted[session] = -1

    def close(self, session: str) -> int:
        """Let it sample no more; how often its calls were preempted (-1: not known)."""
        self._open.pop(session, None)
        return self.preempted.pop(session, -1)

    async def info(self) -> EngineInfo:
        """What the engine is."""
        return self._info

    async def generate(self, call: EngineCall) -> Sequence[Generation]:
        """The answers to one call, sampled one after another's start, each a call of verl's."""
        found = self._open.get(call.session)
        if found is None:
            raise EngineError(
                f"session {call.session!r} belongs to no rollout that is running", status=404
            )
        if call.prompt is None:
            raise EngineError("verl's engine takes token prompts only", status=400)
        return [await self._answer(call, found) for _ in range(call.n)]

    async def stream(self, call: EngineCall) -> AsyncIterator[Delta]:
        """The answer in one piece: verl's server manager gives none before the end."""
        (generation,) = await self.generate(replace(call, n=1))
        yield Delta(text=generation.text, message=generation.message, done=generation)

    async def aclose(self) -> None:
        """Nothing to give back: verl owns its engines."""

    async def _answer(self, call: EngineCall, found: _Open) -> Generation:
        assert call.prompt is not None  # noqa: S101 (asked for in generate)
        asked = {key: value for key, value in call.sampling.items() if key in _CLIENTS}
        room = min([found.response_tokens, *(int(asked.pop(k)) for k in _LENGTHS if k in asked)])
        turn, preempted = await found.calls.generate(call.prompt, room, **asked)
        if preempted >= 0:
            self.preempted[call.session] = max(self.preempted[call.session], 0) + preempted
        return Generation(
            turn=turn,
            text=self._text(turn),
            finish=turn.finish,
            stop_reason=turn.stop_reason,
            prompt_tokens=len(turn.prompt),
            policy_version=turn.generation[-1].policy_version,
        )

    def _text(self, turn: Turn) -> str:
        ids = turn.sampled_ids.tolist()
        if turn.finish is FinishReason.STOP and turn.stop_reason is not None:
            ids = ids[:-1]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
