"""Are the tokens a trainer will see those that were sampled? Each converted row, as rendered.

A trainer renders the converted messages with the model's chat template and encodes the text. What
the engine sampled is in the row's token fields. Where the two part, and how, is counted by kind.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from rlbridge.contracts.codecs import gym
from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import IntArray, Provenance, as_token_ids
from rlbridge.errors import ContractError
from rlbridge.onpolicy.drift import diagnose
from rlbridge.onpolicy.survey import DriftedCall
from rlbridge.transforms.conversation import output_of
from rlbridge.transforms.harvest import Convert, SkippedRowError
from rlbridge.transforms.reading import Line, Reader
from rlbridge.transforms.rejects import BadRowError


@dataclass(slots=True)
class Parity:
    """What was counted.

    Attributes:
        rows: rows that convert and have a valid token record.
        equal: of those, the ones whose trained tokens begin with all tokens the engine had.
        sampled: rows that part within a message the policy sampled, by kind.
        prompt: rows that part before, in what the policy was prompted with, by kind.
        untold: rows without token fields, or with broken ones.
        skipped: rows that don't convert.
        first: the first parting, for a picture.
    """

    rows: int = 0
    equal: int = 0
    sampled: Counter[str] = field(default_factory=Counter)
    prompt: Counter[str] = field(default_factory=Counter)
    untold: int = 0
    skipped: int = 0
    first: DriftedCall | None = None

    @property
    def share(self) -> float:
        """Rows that part anywhere, among those compared; 0 if there are none."""
        return 1 - self.equal / self.rows if self.rows else 0.0


def compare(lines: Reader, convert: Convert, tokenizer: Any, *, ends: Iterable[int]) -> Parity:
    """Convert every row, render it, and compare with the last call's tokens.

    The last call's prompt holds the calls before it wherever the rollout is contiguous, so one
    comparison covers the rollout.

    Args:
        lines: the rollouts.
        convert: an SFT converter (`rlbridge.transforms.sft`).
        tokenizer: the model's, with its chat template.
        ends: IDs that end a turn.
    """
    found, ends = Parity(), frozenset(ends)
    for line in lines:
        try:
            _, body, _ = convert(line.row)
            record = orjson.loads(body)
            turns = gym.turns_from_response({"output": output_of(line.row)})
        except SkippedRowError:
            found.skipped += 1
            continue
        except BadRowError as error:
            found.skipped += 1
            lines.reject(line, error)
            continue
        except ContractError:
            turns = ()
        if not turns:
            found.untold += 1
            continue
        _compare_row(found, line, record, turns, tokenizer, ends)
    return found


def _compare_row(
    found: Parity,
    line: Line,
    record: dict[str, Any],
    turns: tuple[Turn, ...],
    tokenizer: Any,
    ends: frozenset[int],
) -> None:
    found.rows += 1
    last = turns[-1]
    known, trained = last.token_ids, trained_tokens(record, tokenizer)
    mask = _sampled(turns)
    drift = diagnose(known, trained, tokenizer, ends=ends, sampled=mask)
    if drift is None:
        found.equal += 1
        return
    (found.sampled if drift.sampled else found.prompt)[drift.kind.value] += 1
    if found.first is None:
        found.first = DriftedCall(line.where, len(turns), len(turns) - 1, drift, known, trained)


def trained_tokens(record: dict[str, Any], tokenizer: Any) -> IntArray:
    """int32 [n]: what a trainer makes of a converted row, `openai` or `simple`."""
    messages = record.get("messages") or [
        {"role": "user", "content": record["input"]},
        {"role": "assistant", "content": record["output"]},
    ]
    text = tokenizer.apply_chat_template(messages, tools=record.get("tools"), tokenize=False)
    return as_token_ids(tokenizer.encode(text, add_special_tokens=False))


def _sampled(turns: tuple[Turn, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask, bool [n]: tokens of the last call's sequence that the policy sampled in any call."""
    last = turns[-1]
    mask = np.zeros(len(last.token_ids), dtype=np.bool_)
    mask[len(last.prompt) :] = True
    mask[: len(last.prompt)] = last.prompt.provenance == Provenance.SAMPLED
    for turn in turns[:-1]:
        start, stop = len(turn.prompt), len(turn.token_ids)
        if stop <= len(last.prompt):
            same = np.array_equal(last.prompt.token_ids[:stop], turn.token_ids)
            mask[start:stop] |= same
    return mask
