"""Which sampling parameters an engine is sent: the client's, or the trainer's where it insists.

No number means "off": what is off is left out (`top_k: -1` and `0`, vLLM's and others' words for
off, are read so). Refuses what an engine would refuse later with less to say. `seed` is dropped,
always: with a chunked prefill it ends vLLM's engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlbridge.contracts import wire
from rlbridge.gateway.config import SamplingPolicy
from rlbridge.gateway.errors import ApiError

_NEUTRAL: Mapping[str, object] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": {},
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The parameters of one call.

    Attributes:
        params: for the engine.
        notes: what of the client's request was changed, for people.
    """

    params: dict[str, Any]
    notes: tuple[str, ...] = ()


def resolve(
    body: Mapping[str, Any],
    policy: SamplingPolicy,
    *,
    prompt_tokens: int,
    max_model_len: int | None,
) -> Resolved:
    """The parameters of a call.

    Args:
        body: the client's request; its other fields are left alone.
        policy: who decides.
        prompt_tokens: length of the prompt.
        max_model_len: the engine's context; None if nobody knows.

    Raises:
        ApiError: a value out of range, a conflict with the trainer's policy where that refuses,
            or a prompt that fills the context.
    """
    asked = {
        name: body[name]
        for name in wire.SAMPLING_PARAMS
        if body.get(name) is not None and name not in _LENGTHS and name != "seed"
    }
    if asked.get("top_k") in (-1, 0):
        del asked["top_k"]
    _check(asked)
    notes = ["seed dropped"] if body.get("seed") is not None else []
    if policy.mode == "trainer":
        params = _trainers(asked, policy, notes)
    else:
        params = {**_named(policy), **asked}
    limit = _limit(body, policy, prompt_tokens, max_model_len, notes)
    if limit is not None:
        params["max_tokens"] = limit
    return Resolved(params, tuple(notes))


def _named(policy: SamplingPolicy) -> dict[str, Any]:
    """What the policy sets."""
    values = {name: getattr(policy, name, None) for name in wire.SHAPING_PARAMS}
    return {name: value for name, value in values.items() if value is not None}


def _trainers(asked: Mapping[str, Any], policy: SamplingPolicy, notes: list[str]) -> dict[str, Any]:
    """Under a trainer's policy nothing of what shapes the distribution is the client's."""
    params = _named(policy)
    for name, value in asked.items():
        if name not in wire.SHAPING_PARAMS:
            params[name] = value
        elif value != params.get(name, _NEUTRAL.get(name)):
            ours = params.get(name, "left at the engine's neutral value")
            if policy.conflict == "refuse":
                raise ApiError(
                    f"{name} is {ours} for every call of this training run, not {value}; leave it "
                    "out of the request",
                    param=name,
                    code="sampling_policy",
                )
            notes.append(f"{name} {value} overridden")
    return params


def _limit(
    body: Mapping[str, Any],
    policy: SamplingPolicy,
    prompt_tokens: int,
    max_model_len: int | None,
    notes: list[str],
) -> int | None:
    """`max_tokens`, within the policy and the context; None where nothing bounds it."""
    bounds = []
    for name in _LENGTHS:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ApiError(f"{name} must be an integer of at least 1, got {value!r}", param=name)
        bounds.append(value)
    asked = min(bounds, default=None)
    if policy.max_tokens is not None:
        bounds.append(policy.max_tokens)
    if max_model_len is not None:
        room = max_model_len - prompt_tokens
        if room < 1:
            raise ApiError(
                f"This model's maximum context length is {max_model_len} tokens. The prompt has "
                f"{prompt_tokens} tokens, which leaves no room for an answer.",
                param="messages",
                code="context_length_exceeded",
            )
        bounds.append(room)
    limit = min(bounds, default=None)
    if asked is not None and limit is not None and limit < asked:
        notes.append(f"max_tokens {asked} clamped to {limit}")
    return limit


def _check(asked: Mapping[str, Any]) -> None:
    for name, (low, high) in _RANGES.items():
        value = asked.get(name)
        if value is None:
            continue
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise ApiError(
                f"{name} must be a number from {low:g} to {high:g}, got {value!r}", param=name
            )
    if asked.get("top_p") == 0:
        raise ApiError("top_p must be above 0", param="top_p")
    top_k = asked.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise ApiError(f"top_k must be an integer of at least 1, got {top_k!r}", param="top_k")
