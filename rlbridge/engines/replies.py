"""Generations out of replies, through the codecs. Refuses tokens that can't be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlbridge.contracts import wire
from rlbridge.contracts.codecs.engine import finish_reason, turns_from_reply
from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import SampledSpan
from rlbridge.engines.engine import EngineCall, Generation
from rlbridge.engines.wires import Spoken
from rlbridge.errors import ContractError

Json = Mapping[str, Any]


def generations(
    reply: Json, *, call: EngineCall, body: Json, spoken: Spoken, replica: str
) -> tuple[Generation, ...]:
    """The answers in a whole reply.

    Raises:
        ContractError: another prompt than was sent, lost tokens, tokens without logprobs, other
            numbers of answers.
    """
    choices = reply.get("choices")
    if not isinstance(choices, Sequence) or len(choices) != call.n:
        raise ContractError(f"the reply has not the {call.n} choices that were asked for")
    usage = reply.get("usage") or {}
    if spoken.token_in:
        _check_prompt(reply, usage, call)
    turns = [
        _turn(reply, choice, number, call=call, body=body, spoken=spoken)
        for number, choice in enumerate(choices)
    ]
    if spoken.info.tokens:
        _check_count(turns, usage)
    found = []
    for turn, choice in zip(turns, choices, strict=True):
        version = spoken.info.policy_version
        if turn is not None:
            version = turn.generation[-1].policy_version
        message = choice.get("message")
        found.append(
            Generation(
                turn=turn,
                text=_text(choice),
                message=_message(message) if _parsed(message, spoken) else None,
                finish=finish_reason(choice.get("finish_reason")),
                stop_reason=choice.get("stop_reason"),
                prompt_tokens=usage.get("prompt_tokens"),
                cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
                replica=replica,
                policy_version=version,
            )
        )
    return tuple(found)


def _check_prompt(reply: Json, usage: Json, call: EngineCall) -> None:
    """That the engine was prompted with what was sent: each reply says so in one way at least."""
    assert call.prompt is not None  # noqa: S101 # no body was made without one
    sent = call.prompt.token_ids
    counted = usage.get("prompt_tokens")
    if counted is not None and counted != len(sent):
        raise ContractError(f"the engine counts {counted} prompt tokens, {len(sent)} were sent")
    for holder in (reply, *reply["choices"]):
        given = holder.get(wire.PROMPT_TOKEN_IDS)
        if given is not None and not np.array_equal(given, sent):
            raise ContractError("the engine was prompted with other IDs than were sent")
    if counted is None and not any(
        holder.get(wire.PROMPT_TOKEN_IDS) for holder in (reply, *reply["choices"])
    ):
        raise ContractError("the reply doesn't say what the engine was prompted with")


def _check_count(turns: Sequence[Turn | None], usage: Json) -> None:
    """That no sampled token was lost together with its logprob."""
    counted = usage.get("completion_tokens")
    given = sum(len(turn.sampled_ids) for turn in turns if turn is not None)
    if counted is not None and counted != given:
        raise ContractError(f"the engine sampled {counted} tokens, the reply has {given}")


def _turn(
    reply: Json, choice: Json, number: int, *, call: EngineCall, body: Json, spoken: Spoken
) -> Turn | None:
    """One answer's tokens; None where the engine gives none, or was told to stop before one."""
    if not spoken.info.tokens or (
        finish_reason(choice.get("finish_reason")) is FinishReason.ABORT and _is_empty(choice)
    ):
        return None
    (turn,) = turns_from_reply(
        {**reply, "choices": [choice]},
        request={name: value for name, value in body.items() if name != "prompt"},
        prompt_token_ids=call.prompt.token_ids if spoken.token_in and call.prompt else None,
        logprobs_mode=spoken.logprobs_mode,
    )
    if spoken.info.policy_version is not None and turn.generation[-1].policy_version is None:
        spans = tuple(
            SampledSpan(span.token_ids, span.logprobs, None, spoken.info.policy_version)  # type: ignore[arg-type]
            for span in turn.generation
        )
        turn = replace(turn, generation=spans)
    if call.prompt is not None and np.array_equal(turn.prompt.token_ids, call.prompt.token_ids):
        turn = replace(turn, prompt=call.prompt)  # it knows where each of its tokens came from
    return replace(turn, call_id=f"{turn.call_id}/{number}") if call.n > 1 else turn


def _is_empty(choice: Json) -> bool:
    logprobs = choice.get("logprobs") or {}
    return not (choice.get(wire.TOKEN_IDS) or logprobs.get("content") or logprobs.get("tokens"))


def _text(choice: Json) -> str:
    message = choice.get("message")
    return (message.get("content") if message else choice.get("text")) or ""


def _parsed(message: Json | None, spoken: Spoken) -> bool:
    """Whether the engine read the message itself."""
    if message is None:
        return False
    return spoken.info.parses or bool(message.get("reasoning") or message.get("tool_calls"))


def _message(message: Json | None) -> Json:
    """An assistant message without what is null, and without token fields."""
    given = message or {}
    kept = {
        name: given[name]
        for name in ("reasoning", "reasoning_content", "refusal", "tool_calls")
        if given.get(name)
    }
    return {"role": "assistant", "content": given.get("content"), **kept}
