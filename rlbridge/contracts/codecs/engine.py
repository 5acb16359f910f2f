"""Turns out of an engine's reply (vLLM 0.18 to 0.33; NeMo-RL's server). Refuses lost tokens.

Three places hold sampled IDs: `token_ids` (`return_token_ids`), `"token_id:N"` in the logprobs
(`return_tokens_as_token_ids`), and NeMo-RL's `generation_token_ids` on the message. Text of a
token is never turned back into an ID: half a character has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlbridge.contracts import wire
from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import (
    Encoding,
    LogprobsMode,
    PromptSpan,
    SampledSpan,
    as_logprobs,
    as_token_ids,
)
from rlbridge.errors import ContractError

TOKEN_ID_PREFIX = "token_id:"  # noqa: S105 # vLLM's spelling of an ID, not a secret
# vLLM's default where it has no logprob, and its floor for -inf: nobody sampled at e**-9999.
NO_LOGPROB = -9999.0

Json = Mapping[str, Any]


def parse_token_id(text: object) -> int:
    """The ID in `"token_id:N"`.

    Raises:
        ContractError: anything else, the token's text above all.
    """
    if isinstance(text, str) and text.startswith(TOKEN_ID_PREFIX):
        digits = text[len(TOKEN_ID_PREFIX) :]
        if digits.isascii() and digits.isdigit():
            return int(digits)
    raise ContractError(
        f"{text!r} is not a token ID; set return_token_ids or return_tokens_as_token_ids, "
        "because a token's text can't be turned back into its ID"
    )


def turns_from_reply(
    reply: Json,
    *,
    request: Json | None = None,
    prompt_token_ids: npt.ArrayLike | None = None,
    logprobs_mode: LogprobsMode | None = None,
    encoding: Encoding | None = None,
    vocab_size: int | None = None,
) -> tuple[Turn, ...]:
    """Turns of a `/v1/chat/completions`, `/v1/completions` or `/inference/v1/generate` reply.

    Args:
        reply: the body.
        request: the request's body: its sampling parameters, and its prompt where it was IDs.
        prompt_token_ids: the prompt, where neither reply nor request has it.
        logprobs_mode: the engine's `--logprobs-mode`.
        encoding: what made the prompt.
        vocab_size: refuse IDs at or above it.

    Returns:
        One turn a choice.

    Raises:
        ContractError: a choice without IDs or a prompt, or lengths that differ; says where.
    """
    choices = _choices(reply)
    call_id = str(reply.get("id") or reply.get("request_id") or "")
    turns = []
    for number, choice in enumerate(choices):
        where = f"$.choices[{number}]"
        prompt = _prompt(reply, request, choice, number, len(choices), prompt_token_ids, where)
        turns.append(
            Turn(
                PromptSpan(as_token_ids(prompt), vocab_size=vocab_size),
                _spans(choice, where, vocab_size),
                finish=finish_reason(choice.get("finish_reason")),
                stop_reason=choice.get("stop_reason"),
                sampling=sampling_of(request or {}),
                logprobs_mode=logprobs_mode,
                encoding=encoding,
                call_id=f"{call_id}/{number}" if len(choices) > 1 else call_id,
            )
        )
    return tuple(turns)


def _choices(reply: Json) -> Sequence[Json]:
    choices = reply.get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ContractError("$.choices is missing or empty; this is no reply of an engine")
    return choices


def finish_reason(value: object) -> FinishReason:
    """A `finish_reason`; what nobody knows becomes UNKNOWN."""
    try:
        return FinishReason(str(value))
    except ValueError:
        return FinishReason.UNKNOWN


def sampling_of(request: Json) -> dict[str, Any]:
    """The sampling parameters in a request's body, as they were sent."""
    given = {**request, **(request.get("sampling_params") or {})}
    return {name: given[name] for name in wire.SAMPLING_PARAMS if given.get(name) is not None}


def _generation(choice: Json, where: str) -> tuple[Any, Any]:
    """Sampled IDs and logprobs of one choice, None for logprobs it doesn't have."""
    message = choice.get("message") or {}
    if message.get(wire.GENERATION_TOKEN_IDS):
        return message[wire.GENERATION_TOKEN_IDS], message.get(wire.GENERATION_LOG_PROBS)
    reported = choice.get("logprobs") or {}
    entries, values = reported.get("content"), reported.get("token_logprobs")
    if entries is not None:
        values = [entry.get("logprob") for entry in entries]
    ids = choice.get(wire.TOKEN_IDS)
    if ids is None:
        names: Sequence[Any] = reported.get("tokens") or ()
        if entries is not None:
            names = [entry.get("token_id", entry.get("token")) for entry in entries]
        if not names:
            raise ContractError(f"{where} has no token IDs; set return_token_ids and logprobs")
        ids = [name if isinstance(name, int) else parse_token_id(name) for name in names]
    return ids, values


def _spans(choice: Json, where: str, vocab_size: int | None) -> tuple[SampledSpan, ...]:
    ids, logprobs = _generation(choice, where)
    tokens = as_token_ids(ids)
    if logprobs is None:
        logprobs = np.full(len(tokens), np.nan, dtype=np.float32)
    known = as_logprobs(logprobs)
    unknown = known == NO_LOGPROB
    if unknown.any():
        known = as_logprobs(np.where(unknown, np.nan, known))
    if len(tokens) != len(known):
        raise ContractError(
            f"{where}: {len(tokens)} token IDs but {len(known)} logprobs; the reply was cut or "
            "changed on its way"
        )
    versions = choice.get(wire.WEIGHT_VERSIONS) or [{"start": 0, "end": len(tokens)}]
    spans, at = [], 0
    for version in versions:
        start, stop = int(version["start"]), int(version["end"])
        if start != at:
            raise ContractError(f"{where}.weight_versions leave out token {at}")
        name = version.get("version")
        spans.append(
            SampledSpan(tokens[start:stop], known[start:stop], None, name, vocab_size)  # type: ignore[arg-type]
        )
        at = stop
    if at != len(tokens):
        raise ContractError(f"{where}.weight_versions end at {at} of {len(tokens)} tokens")
    return tuple(spans)


def _prompt(
    reply: Json,
    request: Json | None,
    choice: Json,
    number: int,
    choices: int,
    given: npt.ArrayLike | None,
    where: str,
) -> npt.ArrayLike:
    """The prompt's IDs: from the reply, the caller, or a request that was IDs itself."""
    message = choice.get("message") or {}
    for holder in (choice, message, reply):
        if holder.get(wire.PROMPT_TOKEN_IDS):
            return list(holder[wire.PROMPT_TOKEN_IDS])
    if given is not None:
        return given
    asked = (request or {}).get("prompt") or (request or {}).get(wire.TOKEN_IDS)
    if isinstance(asked, list) and asked:
        if isinstance(asked[0], int):
            return asked
        if isinstance(asked[0], list):  # several prompts; `n` answers to each, in order
            return list(asked[number * len(asked) // choices])
    raise ContractError(
        f"{where} has no prompt_token_ids; set return_token_ids, or pass the prompt that was sent"
    )


def reply_from_turn(turn: Turn, *, message: Json | None = None, model: str = "") -> dict[str, Any]:
    """A `/v1/chat/completions` body that carries a turn, readable by `turns_from_reply`.

    A logprob nobody knows is null. Sampled text is the caller's: pass `message`.
    """
    ids, logprobs = turn.sampled_ids.tolist(), turn.logprobs.tolist()
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": None, **(message or {})},
        "finish_reason": turn.finish.value,
        "stop_reason": turn.stop_reason,
        wire.TOKEN_IDS: ids,
        "logprobs": {
            "content": [
                {
                    "token": f"{TOKEN_ID_PREFIX}{token}",
                    "logprob": None if np.isnan(logprob) else logprob,
                    "bytes": None,
                    "top_logprobs": [],
                }
                for token, logprob in zip(ids, logprobs, strict=True)
            ]
        },
    }
    if any(span.policy_version is not None for span in turn.generation):
        choice[wire.WEIGHT_VERSIONS] = _versions(turn)
    prompt = turn.prompt.token_ids.tolist()
    return {
        "id": turn.call_id,
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        wire.PROMPT_TOKEN_IDS: prompt,
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "total_tokens": len(prompt) + len(ids),
        },
    }


def _versions(turn: Turn) -> list[dict[str, Any]]:
    at, versions = 0, []
    for span in turn.generation:
        stop = at + len(span)
        versions.append({"version": span.policy_version, "start": at, "end": stop})
        at = stop
    return versions
