"""Gym's token fields (`TokenIDLogProbMixin`): on the last output item of each model call.

Gym drops all three fields, with a 200, when one is missing, a logprob is null or an ID is a
string. So what Gym would drop is refused on the way out, and an item with some of the fields is
refused on the way in. The echo of `/verify` is no source of token data.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rlbridge.contracts import wire
from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import PromptSpan, SampledSpan, as_logprobs, as_token_ids
from rlbridge.errors import ContractError

_REQUIRED = (wire.PROMPT_TOKEN_IDS, wire.GENERATION_TOKEN_IDS, wire.GENERATION_LOG_PROBS)


def fields_from_turn(turn: Turn) -> dict[str, list[Any]]:
    """The three fields of a turn, as Gym takes them.

    Raises:
        ContractError: a logprob is missing; Gym would drop every token field in silence.
    """
    logprobs = turn.logprobs
    if bool(np.isnan(logprobs).any()):
        raise ContractError(
            f"{int(np.isnan(logprobs).sum())} of {len(logprobs)} logprobs are missing; Gym drops "
            "the token fields of such a turn, so keep its tokens outside Gym"
        )
    return {
        wire.PROMPT_TOKEN_IDS: turn.prompt.token_ids.tolist(),
        wire.GENERATION_TOKEN_IDS: turn.sampled_ids.tolist(),
        wire.GENERATION_LOG_PROBS: logprobs.tolist(),
    }


def turn_from_item(item: Mapping[str, Any], where: str = "$") -> Turn | None:
    """The turn on an output item or an assistant message; None if it carries no token field.

    Raises:
        ContractError: some of the three fields are missing or break the contract.
    """
    found = [name for name in _REQUIRED if item.get(name) is not None]
    if not found:
        return None
    if len(found) < len(_REQUIRED):
        missing = ", ".join(name for name in _REQUIRED if name not in found)
        raise ContractError(f"{where} has {', '.join(found)} but not {missing}")
    try:
        return Turn(
            PromptSpan(as_token_ids(item[wire.PROMPT_TOKEN_IDS])),
            (
                SampledSpan(
                    as_token_ids(item[wire.GENERATION_TOKEN_IDS]),
                    as_logprobs(item[wire.GENERATION_LOG_PROBS]),
                ),
            ),
        )
    except ContractError as error:
        raise ContractError(f"{where}: {error}") from error


def turns_from_response(response: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The turns of a Responses object, one for each output item that carries token fields.

    Raises:
        ContractError: an item's fields are incomplete or bad; the message says which item.
    """
    output = response.get("output")
    if not isinstance(output, list):
        raise ContractError("$.response.output is missing; this is no Responses object")
    turns = (
        turn_from_item(item, f"$.response.output[{number}]")
        for number, item in enumerate(output)
        if isinstance(item, Mapping)
    )
    return tuple(turn for turn in turns if turn is not None)


def without_token_fields(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items without token fields, which no verifier reads and which slow `/verify` down."""
    return [{k: v for k, v in item.items() if k not in wire.TOKEN_FIELDS} for item in items]
