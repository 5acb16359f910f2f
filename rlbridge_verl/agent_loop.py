"""A verl agent loop for Gym's tool environments: the policy acts in the rollout's own session.

In a verl config::

    actor_rollout_ref.rollout.agent.default_agent_loop=nemo_gym_tools
    actor_rollout_ref.rollout.agent.agent_loop_config_path=<rlbridge_verl>/agent_loops.yaml
    +reward.nemo_gym.url=http://127.0.0.1:8000

Tokens in, tokens out: what was sampled is never encoded again, observations are appended by
`rlbridge.onpolicy.Bridge`. The reward is asked for in the same session and handed over with the
trajectory, past verl's reward workers. A rollout without a reward raises, and verl leaves it out.
"""

import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from rlbridge.contracts.rollout import FinishReason, Rollout, Turn
from rlbridge.contracts.tokens import PromptSpan, as_token_ids
from rlbridge.errors import EngineError, GymError
from rlbridge.gym.failures import invalid_reward
from rlbridge.gym.session import GymSession
from rlbridge.gym.tools import answer_calls
from rlbridge.onpolicy.bridge import Bridged
from rlbridge.onpolicy.build import build
from rlbridge.onpolicy.tokenizer import decode, encode
from rlbridge.parsing.stream import parse
from rlbridge.parsing.style import opens_reasoning
from rlbridge.rows import messages_of, tools_of
from rlbridge_verl.calls import ServerCalls
from rlbridge_verl.scoring import ENGINE_FAILED, Origin, tell_sampler
from rlbridge_verl.trajectory import outputs_of
from rlbridge_verl.worker import Worker, worker_of


class End(StrEnum):
    """Why a rollout ended."""

    COMPLETED = "completed"
    """The policy answered without a tool call."""
    TRUNCATED = "truncated"
    """Its answer was cut, or nothing more fits: there was no last word."""
    MAX_TURNS = "max_turns"
    """It still called tools in its last allowed turn."""


@dataclass(slots=True)
class Conversation:
    """One rollout as it grows."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    said: list[dict[str, Any]] = field(default_factory=list)
    """What came after the prompt, in Chat form: answers and observations."""
    turns: list[Turn] = field(default_factory=list)
    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    generate_s: float = 0.0
    tools_s: float = 0.0
    preempted: int = -1
    end: End = End.TRUNCATED

    def figures(self) -> dict[str, float]:
        """For verl's loggers."""
        return {
            "gym/turns": float(len(self.turns)),
            "gym/tool_calls": float(self.calls),
            "gym/tool_failures": float(
                sum(count for kind, count in self.failures.items() if kind != "truncated")
            ),
            "gym/truncated": float(self.end is End.TRUNCATED),
            "gym/max_turns": float(self.end is End.MAX_TURNS),
        }


class NeMoGymAgentLoop(AgentLoopBase):
    """Seeds a session, lets the policy call its tools, and verifies; see the module.

    Limits are verl's own keys of `actor_rollout_ref.rollout`: `response_length` (tokens of the
    whole rollout, observations included), `multi_turn.max_assistant_turns` (16 if unset),
    `multi_turn.max_tool_response_length` (characters), `multi_turn.max_parallel_calls` (above 1,
    a turn's calls are sent at once; all calls are made in any case).
    """

    def __init__(self, *args: Any, tools: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._worker: Worker = worker_of(self.config, self.tokenizer)

    async def run(self, sampling_params: dict[str, Any], **fields: Any) -> AgentLoopOutput:
        """Run one rollout.

        Args:
            sampling_params: verl's.
            **fields: the row's columns.

        Returns:
            One trajectory with its reward.

        Raises:
            InvalidRewardError: it has no reward; verl leaves it out of the batch.
            EngineError: the engine failed.
        """
        origin = Origin.of(fields)
        calls = ServerCalls(
            self.server_manager,
            uuid.uuid4().hex,
            self._worker.ends,
            sampling_params,
            self._worker.max_model_len,
        )
        messages = messages_of(origin.row, f"row {origin.index}")
        talk = Conversation(messages, tools_of(origin.row))
        began = time.monotonic()
        session = self._worker.scorer.client(origin.environment).session(origin.row)
        try:
            async with session:
                await self._converse(talk, session, calls)
                reward = await session.verify(talk.said)
        except GymError as error:
            reward = invalid_reward(error, lost=session.lost, latency_s=time.monotonic() - began)
        except Exception:
            await tell_sampler(origin, ENGINE_FAILED)
            raise
        settled = await self._worker.scorer.settle(reward, origin)
        return self._output(talk, settled)

    async def _converse(self, talk: Conversation, session: GymSession, calls: ServerCalls) -> None:
        limits = self._worker.limits
        prompt = self._first_prompt(talk)
        begin = len(prompt)
        for turn_number in range(limits.max_turns):
            room = limits.response_tokens - (len(prompt) - begin)
            began = time.monotonic()
            turn, preempted = await calls.generate(
                prompt, room, call_id=f"{calls.request_id}-{turn_number}"
            )
            talk.generate_s += time.monotonic() - began
            talk.preempted = max(talk.preempted, preempted)
            if turn.finish is FinishReason.ABORT:
                raise EngineError("the engine aborted a call and nobody resumes it")
            message = self._message(turn, talk)
            talk.turns.append(turn)
            talk.said.append(message)
            if turn.finish is FinishReason.LENGTH:
                talk.end = End.TRUNCATED
                return
            if not message.get("tool_calls"):
                talk.end = End.COMPLETED
                return
            if turn_number + 1 == limits.max_turns:
                talk.end = End.MAX_TURNS
                return
            prompt = await self._observe(talk, session, turn, message["tool_calls"])
            if len(prompt) - begin >= limits.response_tokens or self._full(prompt):
                talk.end = End.TRUNCATED
                return

    def _first_prompt(self, talk: Conversation) -> PromptSpan:
        text = self._worker.bridge.template.render(talk.messages, tools=talk.tools or None)
        return PromptSpan(as_token_ids(encode(self.tokenizer, text)))

    def _full(self, prompt: PromptSpan) -> bool:
        limit = self._worker.max_model_len
        return limit is not None and len(prompt) >= limit

    def _message(self, turn: Turn, talk: Conversation) -> dict[str, Any]:
        """The policy's answer as a Chat message, by the style of its template."""
        ids = turn.sampled_ids
        if turn.finish is FinishReason.STOP and turn.stop_reason is not None:
            ids = ids[:-1]
        style = self._worker.style
        tail = decode(self.tokenizer, turn.prompt.token_ids[-64:])
        parsed = parse(
            decode(self.tokenizer, ids),
            style,
            opened=opens_reasoning(tail, style),
            tools=talk.tools,
        )
        return parsed.as_chat(turn.call_id)

    async def _observe(
        self, talk: Conversation, session: GymSession, turn: Turn, tool_calls: list[dict[str, Any]]
    ) -> PromptSpan:
        """Call the tools; the next prompt."""
        limits = self._worker.limits
        began = time.monotonic()
        answers = await answer_calls(
            session,
            tool_calls,
            max_output_chars=limits.max_tool_output_chars,
            parallel=limits.parallel,
            tools=[tool["function"]["name"] for tool in talk.tools],
            failures=talk.failures,
        )
        talk.tools_s += time.monotonic() - began
        talk.calls += len(answers)
        talk.said += answers
        bridged = self._worker.bridge.next_prompt(turn, answers, tools=talk.tools or None)
        if not isinstance(bridged, Bridged):
            raise EngineError(
                f"the policy's chat template can't take tool messages: {bridged.detail}"
            )
        return bridged.prompt

    def _output(self, talk: Conversation, settled: dict[str, Any]) -> AgentLoopOutput:
        built = build(Rollout(rollout_id=talk.turns[0].call_id, turns=tuple(talk.turns)))
        metrics = AgentLoopMetrics(
            generate_sequences=talk.generate_s,
            tool_calls=talk.tools_s,
            num_preempted=talk.preempted,
        )
        (output,) = outputs_of(
            built.sequences,
            response_length=self._worker.limits.response_tokens,
            num_turns=len(talk.messages) + len(talk.said),
            metrics=metrics,
        )
        output.reward_score = settled["reward_score"]
        output.extra_fields["reward_extra_info"] = settled["reward_extra_info"] | talk.figures()
        return output
