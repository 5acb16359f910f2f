"""Drift over whole rollouts: which calls don't go on from an earlier one, and how it looks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from rlbridge.contracts.rollout import Rollout, Turn
from rlbridge.contracts.tokens import IntArray, Provenance
from rlbridge.onpolicy.drift import Drift, diagnose, first_difference
from rlbridge.onpolicy.tokenizer import Tokenizer, decode


@dataclass(frozen=True, slots=True)
class DriftedCall:
    """A call whose prompt goes on from no earlier call.

    Attributes:
        rollout_id: the rollout's.
        turn: the call's index.
        before: index of the earlier call it shares most with.
        drift: where they part.
        known: int32 [k], the earlier call's tokens.
        rendered: int32 [n], this call's prompt.
    """

    rollout_id: str
    turn: int
    before: int
    drift: Drift
    known: IntArray
    rendered: IntArray


@dataclass(slots=True)
class Survey:
    """What was counted.

    Attributes:
        turns: calls that had an earlier one in their rollout.
        drifted: those that go on from none, in order.
    """

    turns: int = 0
    drifted: list[DriftedCall] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Drifted calls among those that could drift; 0 if there are none."""
        return len(self.drifted) / self.turns if self.turns else 0.0

    @property
    def kinds(self) -> Counter[str]:
        """How many calls drifted in which way."""
        return Counter(call.drift.kind.value for call in self.drifted)


def survey(rollouts: Iterable[Rollout], tokenizer: Tokenizer, *, ends: Iterable[int]) -> Survey:
    """Compare every call with the earlier ones of its rollout.

    A call that goes on from any of them is clean, so branches and sub-agents are no drift as long
    as their tokens are exact. So is a retry, which asks the same again. The first call of a
    sub-agent counts as drift from the call it shares most with.
    """
    ends, result = frozenset(ends), Survey()
    for rollout in rollouts:
        for number, turn in enumerate(rollout.turns[1:], start=1):
            result.turns += 1
            call = _drifted(rollout, number, turn, tokenizer, ends)
            if call is not None:
                result.drifted.append(call)
    return result


def _drifted(
    rollout: Rollout, number: int, turn: Turn, tokenizer: Tokenizer, ends: frozenset[int]
) -> DriftedCall | None:
    prompt = turn.prompt.token_ids
    best, shared = number - 1, -1
    for i in range(number - 1, -1, -1):
        known = rollout.turns[i].token_ids
        common = first_difference(known, prompt)
        if common == len(known) or np.array_equal(prompt, rollout.turns[i].prompt.token_ids):
            return None  # goes on from it, or asks the same again
        if common > shared:
            best, shared = i, common
    earlier = rollout.turns[best]
    sampled = np.concatenate(
        [earlier.prompt.provenance, *(span.provenance for span in earlier.generation)]
    )
    drift = diagnose(
        earlier.token_ids, prompt, tokenizer, ends=ends,
        sampled=np.isin(sampled, (Provenance.SAMPLED, Provenance.MISSING)),
    )  # fmt: skip
    if drift is None:  # a prompt equal to the earlier call's own tokens
        return None
    return DriftedCall(rollout.rollout_id, number, best, drift, earlier.token_ids, prompt)


def picture(call: DriftedCall, tokenizer: Tokenizer, *, around: int = 3, width: int = 12) -> str:
    """Both sequences about the first parting, one token a cell, IDs under their text."""
    at = call.drift.at
    start = max(0, at - around)
    lengths = (call.drift.known_length, call.drift.rendered_length)
    lines = [f"rollout {call.rollout_id}, turn {call.turn} (after {call.before}), token {at}"]
    for name, ids, length in zip(
        ("engine", "prompt"), (call.known, call.rendered), lengths, strict=True
    ):
        stop = min(len(ids), at + min(length, width) + around)
        texts = [repr(decode(tokenizer, [token]))[1:-1] for token in ids[start:stop]]
        numbers = [str(int(token)) for token in ids[start:stop]]
        widths = [max(len(a), len(b)) for a, b in zip(texts, numbers, strict=True)]
        for label, cells in ((name, texts), ("", numbers)):
            row = [cell.ljust(size) for cell, size in zip(cells, widths, strict=True)]
            row.insert(at - start, "»")
            lines.append(f"{label:>6} " + "|".join(row))
    return "\n".join(lines)
