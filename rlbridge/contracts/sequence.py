"""What a trainer gets: one sequence of IDs, and which of them are trained. Refuses mixtures.

Logprobs are NaN wherever there is none, so that a loss over the wrong positions is NaN, not
plausible. Padding is the adapter's business.
"""

from dataclasses import dataclass

import numpy as np

from rlbridge.contracts.tokens import (
    BoolArray,
    ByteArray,
    FloatArray,
    IntArray,
    Provenance,
    Record,
)
from rlbridge.errors import ContractError


@dataclass(frozen=True, slots=True)
class SampledPart:
    """The tokens of one turn inside a sequence.

    Attributes:
        turn: index of the turn in its rollout.
        start: index of its first sampled token in the sequence.
        stop: index behind its last one.
        owned: this sequence trains it; elsewhere it is context.
        policy_version: the weights that sampled it.
    """

    turn: int
    start: int
    stop: int
    owned: bool
    policy_version: int | str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSequence(Record):
    """One sequence of a rollout.

    Attributes:
        rollout_id: the rollout's.
        token_ids: int32 [n].
        logprobs: float32 [n], nats: the sampler's logprob of `token_ids[i]` given all before it;
            NaN for tokens that were not sampled or whose logprob is lost.
        mask: bool [n]: the tokens this sequence trains.
        provenance: uint8 [n] of `Provenance`.
        turn: int32 [n]: index of the turn that sampled the token; -1 for all others.
        parts: the sampled parts in order, owned or not.
        weight: this sequence's share of the rollout's trained tokens. The shares of a rollout
            sum to 1 (0 if nothing is trained), so that a mean over sequences counts every rollout
            once, in however many sequences it comes.

    Raises:
        ContractError: lengths that differ; a trained token without a logprob or not sampled.
    """

    rollout_id: str
    token_ids: IntArray
    logprobs: FloatArray
    mask: BoolArray
    provenance: ByteArray
    turn: IntArray
    parts: tuple[SampledPart, ...]
    weight: float

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        for name in ("logprobs", "mask", "provenance", "turn"):
            if len(getattr(self, name)) != n:
                raise ContractError(f"{n} token IDs but {len(getattr(self, name))} of {name}")
        trained = self.mask
        if bool(np.isnan(self.logprobs[trained]).any()):
            raise ContractError("a trained token has no logprob; mask it")
        if bool((self.provenance[trained] != Provenance.SAMPLED).any()):
            raise ContractError("a trained token was not sampled; mask it")
        for name in ("token_ids", "logprobs", "mask", "provenance", "turn"):
            getattr(self, name).flags.writeable = False

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def prompt_length(self) -> int:
        """Tokens before the first sampled one."""
        return self.parts[0].start

    @property
    def trained_tokens(self) -> int:
        """How many tokens this sequence trains."""
        return int(self.mask.sum())
