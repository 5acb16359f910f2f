"""One call to verl's server manager as a `Turn`. Never encodes, never invents a token.

verl's vLLM server reports a response that was cut at its limit as "completed", so the end is read
from the tokens. With verl's async trainers a call may be aborted by a weight sync and resumed:
verl's client hides that and keeps the first and last version only; here each attempt is a span of
its own, with the version that sampled it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient, LLMServerClient

from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import LogprobsMode, PromptSpan, SampledSpan
from rlbridge.errors import EngineError

RESUME_WAIT_S = 1.0  # verl's own pace while a weight sync is on
_ABORTED = ("aborted", "abort")


@dataclass(frozen=True, slots=True)
class ServerCalls:
    """verl's server manager, as it is called for one rollout.

    Attributes:
        server_manager: verl's `LLMServerClient`.
        request_id: keeps the rollout on one replica while verl's balancer agrees.
        ends: token IDs that end a turn.
        sampling: verl's sampling parameters.
        max_model_len: the engine's context in tokens.
    """

    server_manager: Any
    request_id: str
    ends: frozenset[int]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_model_len: int | None = None

    async def generate(
        self, prompt: PromptSpan, max_tokens: int, *, call_id: str = "", **sampling: Any
    ) -> tuple[Turn, int]:
        """Sample one answer.

        Args:
            prompt: exact IDs to go on from.
            max_tokens: at least 1.
            call_id: the turn's.
            **sampling: parameters that win over verl's.

        Returns:
            The turn, and how often the engine preempted the call (-1 if it doesn't say).

        Raises:
            EngineError: the engine failed, or sampled nothing.
        """
        room = self._room(prompt, max_tokens)
        wanted = {**self.sampling, **sampling}
        spans, preempted, reason = await self._attempts(prompt.token_ids.tolist(), room, wanted)
        if not spans:
            raise EngineError(f"the engine sampled nothing ({reason or 'no reason given'})")
        last = int(spans[-1].token_ids[-1])
        stopped = last in self.ends or last in (wanted.get("stop_token_ids") or ())
        full = sum(map(len, spans)) >= room
        turn = Turn(
            prompt,
            tuple(spans),
            _finish(reason, stopped=stopped, full=full),
            stop_reason=last if stopped else None,
            sampling={**wanted, "max_tokens": max_tokens},
            logprobs_mode=LogprobsMode.PROCESSED,
            call_id=call_id,
        )
        return turn, preempted

    def _room(self, prompt: PromptSpan, max_tokens: int) -> int:
        """Tokens that can be sampled behind `prompt`, at most `max_tokens`."""
        room = max_tokens
        if self.max_model_len is not None:
            room = min(max_tokens, self.max_model_len - len(prompt))
        if room < 1:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens leaves no room in the engine's context of "
                f"{self.max_model_len}",
                code="context_length_exceeded",
            )
        return room

    async def _attempts(
        self, prompt_ids: list[int], room: int, sampling: Mapping[str, Any]
    ) -> tuple[list[SampledSpan], int, str | None]:
        spans: list[SampledSpan] = []
        preempted, sampled = -1, list[int]()
        while True:
            output = await self._attempt(
                [*prompt_ids, *sampled], {**sampling, "max_tokens": room - len(sampled)}
            )
            if output.num_preempted is not None:
                preempted = max(preempted, 0) + output.num_preempted
            if output.token_ids:
                spans.append(_span(output))
                sampled += output.token_ids
            ended = bool(sampled) and sampled[-1] in self.ends
            if output.stop_reason not in _ABORTED or ended or len(sampled) >= room:
                return spans, preempted, output.stop_reason
            if not self._resumes:
                return spans, preempted, output.stop_reason
            await asyncio.sleep(RESUME_WAIT_S)

    @property
    def _resumes(self) -> bool:
        """Whether verl's own client would go on after an abort."""
        return isinstance(self.server_manager, FullyAsyncLLMServerClient)

    async def _attempt(self, prompt_ids: list[int], sampling: dict[str, Any]) -> Any:
        """One attempt, by the base class's `generate`, which doesn't merge several into one."""
        manager = self.server_manager
        call = manager.generate
        if isinstance(manager, LLMServerClient):
            call = LLMServerClient.generate.__get__(manager)
        return await call(self.request_id, prompt_ids=prompt_ids, sampling_params=sampling)


def _finish(reason: str | None, *, stopped: bool, full: bool) -> FinishReason:
    """How a call ended, by its tokens where verl's `reason` can't be trusted."""
    if reason in _ABORTED:
        return FinishReason.ABORT
    return FinishReason.LENGTH if full and not stopped else FinishReason.STOP


# Processed logprobs of vLLM may exceed 0 by a rounding of float32; more is no logprob, and refused.
_ROUNDING = 1e-4


def _span(output: Any) -> SampledSpan:
    logprobs: Sequence[float | None] = output.log_probs or [None] * len(output.token_ids)
    version = output.extra_fields.get("global_steps")
    return SampledSpan(
        output.token_ids,
        [0.0 if one is not None and 0 < one < _ROUNDING else one for one in logprobs],  # type: ignore[arg-type]
        policy_version=None if version is None else int(version),
    )
