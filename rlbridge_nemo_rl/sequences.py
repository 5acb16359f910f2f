"""Training sequences in the form NeMo-RL takes from Gym: contiguous token fields on output items.

NeMo-RL makes one sequence of a rollout and asserts that each prompt begins with all tokens so
far; retries, branches, compacted histories and drifted prompts break that and kill the batch.
Here a rollout's calls become sequences first (`rlbridge.onpolicy.build`). One of them is written
so that NeMo-RL reads exactly its tokens, mask and logprobs; the others are handed on beside it,
for `all_sequences`. Imports no NeMo-RL.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlbridge.contracts import wire
from rlbridge.contracts.codecs.gym import turns_from_response
from rlbridge.contracts.rollout import Rollout, Turn
from rlbridge.contracts.sequence import TrainingSequence
from rlbridge.errors import ContractError
from rlbridge.onpolicy.build import Built, build

EVERY_SEQUENCE = "rlbridge_every_sequence"
"""Key of our Gym actor's config: whether the trainer takes several sequences a rollout."""
OTHERS = "rlbridge_other_sequences"
"""Key of a rollout's last message: its other sequences, a `TrainingRow` each, for that trainer."""
UNTRAINED_TOKENS = "rlbridge_untrained_tokens"
"""Key of a result: sampled tokens of its rollout that nobody trains."""


class TrainingRow(NamedTuple):
    """A sequence as far as it is trained, up to its last trained token.

    Attributes:
        token_ids: int64 [length].
        mask: bool [length]: which of them are trained.
        logprobs: float32 [length]: the sampler's; 0 where `mask` is false.
    """

    token_ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    logprobs: npt.NDArray[np.float32]

    @classmethod
    def of(cls, sequence: TrainingSequence) -> "TrainingRow":
        """The row of a sequence that trains something."""
        stop = int(np.flatnonzero(sequence.mask)[-1]) + 1
        mask = sequence.mask[:stop]
        logprobs = np.where(mask, sequence.logprobs[:stop], np.float32(0))
        return cls(sequence.token_ids[:stop].astype(np.int64), mask, logprobs)


class Contiguous(NamedTuple):
    """An agent's result that passes NeMo-RL's assert.

    Attributes:
        result: with token fields that are one sequence's.
        others: the rollout's other sequences, if they are to be trained too.
    """

    result: dict[str, Any]
    others: tuple[TrainingRow, ...]


def output_items(sequence: TrainingSequence) -> list[dict[str, Any]]:
    """Output items whose token fields NeMo-RL reads as `sequence`.

    Each run of trained tokens is one item's generation; whatever else was sampled or observed is
    part of the next item's prompt. What lies behind the last trained token is left out: NeMo-RL
    has no place for it, and no trained token sees it. A sequence that trains nothing gives none.
    """
    token_ids = sequence.token_ids.tolist()
    items: list[dict[str, Any]] = []
    for start, stop in _runs(sequence.mask):
        fields = {
            wire.PROMPT_TOKEN_IDS: token_ids[:start],
            wire.GENERATION_TOKEN_IDS: token_ids[start:stop],
            wire.GENERATION_LOG_PROBS: sequence.logprobs[start:stop].tolist(),
        }
        text = {"type": "output_text", "text": "", "annotations": []}
        message = {"type": "message", "role": "assistant", "status": "completed"}
        items.append({"id": f"run_{len(items)}", **message, "content": [text], **fields})
    return items


def representative(built: Built) -> TrainingSequence | None:
    """The sequence that is a rollout's row; None if nothing is trained.

    Of those with the prompt of the first call that is trained the one that trains most tokens, the
    last of several: NeMo-RL tells groups by that prompt, and a sub-agent's is no other rollout's.
    """
    owners = (built.sequences[owner] for owner in built.owners if owner >= 0)
    first = next((sequence for sequence in owners if sequence.trained_tokens), None)
    if first is None:
        return None
    prompt = _prompt(first)
    alike = [one for one in built.sequences if one.trained_tokens and _prompt(one) == prompt]
    return max(reversed(alike), key=lambda sequence: sequence.trained_tokens)


def contiguous(
    result: Mapping[str, Any], captured: Rollout | None = None, *, every: bool = False
) -> Contiguous | None:
    """An agent's result with token fields that pass NeMo-RL's assert.

    Args:
        result: of `/run`: `response.output` with token fields; left unchanged.
        captured: its calls as our gateway saw them, which count then: an agent's output lacks
            those of sub-agents and of histories it has dropped.
        every: whether somebody trains the other sequences too.

    Returns:
        A result whose token fields are one sequence's (see `representative`); the items that
        carried the others keep their content without them. `rlbridge_untrained_tokens` counts
        what nobody trains. None if there is nothing to train.

    Raises:
        ContractError: an item has some of the token fields, or they break their contract.
    """
    response = result[wire.RESPONSE]
    if captured is None:
        turns = told = _turns(response)
    else:
        turns, told = captured.turns, _told(response)
    if not turns:
        return None
    built = build(Rollout("result", turns))
    chosen = representative(built)
    if chosen is None:
        return None
    output = list(response["output"])
    if not (_same(told, turns) and _already(chosen, turns, built.trained_tokens)):
        output = [
            {key: value for key, value in item.items() if key not in wire.TOKEN_FIELDS}
            for item in output
        ] + output_items(chosen)
    left = [one for one in built.sequences if one is not chosen and one.trained_tokens]
    untrained = 0 if every else sum(one.trained_tokens for one in left)
    return Contiguous(
        {**result, wire.RESPONSE: {**response, "output": output}, UNTRAINED_TOKENS: untrained},
        tuple(TrainingRow.of(one) for one in left) if every else (),
    )


def _turns(response: Mapping[str, Any]) -> tuple[Turn, ...]:
    return turns_from_response({"output": [_filled(item) for item in response["output"]]})


def _told(response: Mapping[str, Any]) -> tuple[Turn, ...]:
    """The calls that the output tells of; none where it tells of them badly."""
    try:
        return _turns(response)
    except ContractError:
        return ()


def _same(told: Sequence[Turn], turns: Sequence[Turn]) -> bool:
    """Whether the output carries exactly these calls' tokens."""
    return told is turns or (
        len(told) == len(turns)
        and all(
            np.array_equal(one.token_ids, other.token_ids)
            and np.array_equal(one.sampled_ids, other.sampled_ids)
            for one, other in zip(told, turns, strict=True)
        )
    )


def _filled(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """An item without the fields of a call that generated nothing: such a call is no turn."""
    if item.get(wire.GENERATION_TOKEN_IDS) == []:
        return {key: value for key, value in item.items() if key not in wire.TOKEN_FIELDS}
    return item


def _prompt(sequence: TrainingSequence) -> bytes:
    """All before the first trained token, as NeMo-RL reads it."""
    return sequence.token_ids[: int(np.argmax(sequence.mask))].tobytes()


def _already(chosen: TrainingSequence, turns: Sequence[Any], trained: int) -> bool:
    """Whether the calls are one sequence as they are; then nothing is rewritten."""
    return len(chosen.parts) == len(turns) and chosen.trained_tokens == trained and all(
        bool(turn.trainable.all()) for turn in turns
    )  # fmt: skip


def _runs(mask: Any) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
