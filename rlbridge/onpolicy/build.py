"""Captured calls to training sequences: the fewest in which each sampled token is trained once.

A call can be trained inside another call's sequence if its prompt and all it sampled are the
beginning of the other's *prompt*. Calls whose prompt goes on from no other call begin a sequence
of their own: branches, sub-agents, compacted or rewritten histories, drifted prompts. Sequences
are therefore the calls that no other call goes on from, and no smaller number will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from rlbridge.contracts.rollout import Rollout, Turn
from rlbridge.contracts.sequence import SampledPart, TrainingSequence
from rlbridge.contracts.tokens import Provenance
from rlbridge.onpolicy.prefixes import PrefixTree


class DropReason(StrEnum):
    """Why a captured call is in no sequence."""

    DUPLICATE = "duplicate"
    """Captured twice: the same call, prompt and sample."""
    RETRIED = "retried"
    """The client asked again under the same call ID and went on with the other answer."""


@dataclass(frozen=True, slots=True)
class DroppedTurn:
    """A call that is not trained.

    Attributes:
        turn: its index in the rollout.
        reason: why.
        kept: index of the turn that stands for it.
    """

    turn: int
    reason: DropReason
    kept: int


@dataclass(frozen=True, slots=True)
class Built:
    """All that is to be trained of one rollout.

    Attributes:
        sequences: in the order of their last calls.
        owners: for every turn, the index of the sequence that trains it; -1 if it was dropped.
        dropped: calls that are in no sequence.
    """

    sequences: tuple[TrainingSequence, ...]
    owners: tuple[int, ...]
    dropped: tuple[DroppedTurn, ...]

    @property
    def trained_tokens(self) -> int:
        """How many tokens all sequences train together."""
        return sum(sequence.trained_tokens for sequence in self.sequences)


def build(rollout: Rollout) -> Built:
    """Training sequences of a rollout, in time linear in the bytes of its calls.

    A masked rollout gives its sequences with nothing in the loss. Whether the reward is valid is
    for the caller to ask (`rollout.trainable`): a rollout may be built before it is scored.
    """
    turns = rollout.turns
    keys = [turn.token_ids.tobytes() for turn in turns]
    parents, dropped = _parents(turns, keys)
    gone = {drop.turn for drop in dropped}
    followed = {parent for parent in parents if parent >= 0}
    leaves = [i for i in range(len(turns)) if i not in gone and i not in followed]
    owners = [-1] * len(turns)
    chains: list[list[int]] = []
    for number, leaf in enumerate(leaves):
        chain = [leaf]
        while parents[chain[-1]] >= 0:
            chain.append(parents[chain[-1]])
        chain.reverse()
        chains.append(chain)
        for turn in chain:
            if owners[turn] < 0:  # the first sequence that holds it trains it
                owners[turn] = number
    masked = rollout.masked is not None
    total = (
        0 if masked else sum(int(t.trainable.sum()) for i, t in enumerate(turns) if i not in gone)
    )
    sequences = tuple(
        _sequence(rollout, chain, [owners[turn] == number for turn in chain], total)
        for number, chain in enumerate(chains)
    )
    return Built(sequences, tuple(owners), tuple(dropped))


def _parents(turns: Sequence[Turn], keys: list[bytes]) -> tuple[list[int], list[DroppedTurn]]:
    """For every turn the one its prompt goes on from (-1: none), and the turns to drop."""
    dropped = _duplicates(turns, keys)
    gone = {drop.turn for drop in dropped}
    tree = PrefixTree()
    for i, key in enumerate(keys):
        if i not in gone:
            tree.insert(key, i)
    parents = [-1] * len(turns)
    for i, turn in enumerate(turns):
        if i not in gone:
            parents[i] = tree.longest(i, 4 * len(turn.prompt))
    retried = _retried(turns, parents, gone)
    if retried:
        dropped += retried
        gone |= {drop.turn for drop in retried}
        parents = [-1 if i in gone else parent for i, parent in enumerate(parents)]
    return parents, dropped


def _duplicates(turns: Sequence[Turn], keys: list[bytes]) -> list[DroppedTurn]:
    """Calls captured more than once: the same ID (or none), the same tokens, the same logprobs."""
    seen: dict[tuple[str, int, bytes, bytes], int] = {}
    dropped = []
    for i, turn in enumerate(turns):
        what = (turn.call_id, len(turn.prompt), keys[i], turn.logprobs.tobytes())
        first = seen.setdefault(what, i)
        if first != i:
            dropped.append(DroppedTurn(i, DropReason.DUPLICATE, first))
    return dropped


def _retried(turns: Sequence[Turn], parents: list[int], gone: set[int]) -> list[DroppedTurn]:
    """Answers to one call ID that the client never used: it went on from another, or the last."""
    by_call: dict[str, list[int]] = {}
    for i, turn in enumerate(turns):
        if turn.call_id and i not in gone:
            by_call.setdefault(turn.call_id, []).append(i)
    followed = {parent for parent in parents if parent >= 0}
    dropped = []
    for answers in by_call.values():
        if len(answers) > 1:
            used = [i for i in answers if i in followed] or answers[-1:]
            dropped += [
                DroppedTurn(i, DropReason.RETRIED, used[-1]) for i in answers if i not in used
            ]
    return dropped


def _sequence(
    rollout: Rollout, chain: list[int], owned: list[bool], total: int
) -> TrainingSequence:
    last = rollout.turns[chain[-1]]
    token_ids = last.token_ids
    n = len(token_ids)
    logprobs = np.full(n, np.nan, dtype=np.float32)
    provenance = np.full(n, Provenance.SAMPLED, dtype=np.uint8)
    provenance[: len(last.prompt)] = last.prompt.provenance
    number = np.full(n, -1, dtype=np.int32)
    mask = np.zeros(n, dtype=np.bool_)
    parts = []
    for turn, mine in zip(chain, owned, strict=True):
        at = len(rollout.turns[turn].prompt)
        for span in rollout.turns[turn].generation:
            stop = at + len(span)
            logprobs[at:stop] = span.logprobs
            provenance[at:stop] = span.provenance
            number[at:stop] = turn
            if mine and rollout.masked is None:
                mask[at:stop] = span.trainable
            parts.append(SampledPart(turn, at, stop, mine, span.policy_version))
            at = stop
    weight = float(mask.sum()) / total if total else 0.0
    return TrainingSequence(
        rollout.rollout_id,
        token_ids,
        logprobs,
        mask,
        provenance,
        number,
        tuple(parts),
        weight,
    )
