"""One rollout: the calls an agent made to a policy, and the reward. Refuses turns without tokens.

A `Turn` is one call as the engine saw it: the prompt's IDs and what it sampled. Turns of one
rollout need not be contiguous; retries, branches and rewritten histories are normal, and
`rlbridge.onpolicy.build` makes training sequences of them. A rollout whose tokens can't be
trusted says why in `masked` and is kept out of the loss, never dropped in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rlbridge.contracts.reward import Reward
from rlbridge.contracts.tokens import (
    BoolArray,
    Encoding,
    FloatArray,
    IntArray,
    LogprobsMode,
    PromptSpan,
    Record,
    SampledSpan,
)
from rlbridge.errors import ContractError

_Scalar = TypeVar("_Scalar", bound=np.generic)


class FinishReason(StrEnum):
    """Why an engine stopped, in the words of OpenAI's and vLLM's `finish_reason`."""

    STOP = "stop"
    """A turn end, a stop token or a stop string; `Turn.stop_reason` says which."""
    LENGTH = "length"
    """Cut at `max_tokens` or the context's end: there is no turn end."""
    TOOL_CALLS = "tool_calls"
    """A stop whose text the engine's parser read as tool calls."""
    CONTENT_FILTER = "content_filter"
    ABORT = "abort"
    """The engine was told to stop (vLLM answers this with a 200 and partial tokens)."""
    UNKNOWN = "unknown"


class MaskReason(StrEnum):
    """Why a whole rollout is kept out of the loss."""

    TOKENS_LOST = "tokens_lost"
    """Some sampled IDs or logprobs are gone and can't be had again."""
    NOT_CONTIGUOUS = "not_contiguous"
    """A trainer that needs one sequence was given calls that don't make one."""
    ENGINE_FAILED = "engine_failed"
    """A call failed, was aborted or generated nothing."""
    ENVIRONMENT = "environment"
    """The environment asked for it (`mask_sample`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn(Record):
    """One call to the policy, as the engine saw it.

    Attributes:
        prompt: what the engine was prompted with; at least one token.
        generation: what it sampled, in order; one span a policy version, so one span unless the
            weights changed in the middle.
        finish: why it stopped.
        stop_reason: the stop token's ID or the stop string; None for the primary EOS.
        sampling: the sampling parameters sent (`temperature`, `top_p`, ...), as sent.
        logprobs_mode: what the logprobs are of; None if nobody knows.
        encoding: the tokenizer and template that made the prompt; None if nobody knows.
        call_id: the engine's or the gateway's ID of the call; equal for a client's retries.

    Raises:
        ContractError: an empty prompt or no sampled span.
    """

    prompt: PromptSpan
    generation: tuple[SampledSpan, ...]
    finish: FinishReason = FinishReason.UNKNOWN
    stop_reason: int | str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs_mode: LogprobsMode | None = None
    encoding: Encoding | None = None
    call_id: str = ""

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise ContractError("a turn's prompt is empty; an engine always gets at least one ID")
        spans = tuple(self.generation)
        if not spans:
            raise ContractError(
                "a turn without a sampled span; a call that generated nothing is not a turn"
            )
        object.__setattr__(self, "generation", spans)
        object.__setattr__(self, "finish", FinishReason(self.finish))
        object.__setattr__(self, "sampling", dict(self.sampling))

    @property
    def sampled_ids(self) -> IntArray:
        """int32 [n]: all sampled IDs of the turn."""
        spans = self.generation
        return spans[0].token_ids if len(spans) == 1 else _joined([s.token_ids for s in spans])

    @property
    def logprobs(self) -> FloatArray:
        """float32 [n]: the logprob of every sampled token, NaN where the engine gave none."""
        spans = self.generation
        return spans[0].logprobs if len(spans) == 1 else _joined([s.logprobs for s in spans])

    @property
    def trainable(self) -> BoolArray:
        """Mask, bool [n]: the sampled tokens that may enter the loss."""
        return _joined([span.trainable for span in self.generation])

    @property
    def token_ids(self) -> IntArray:
        """int32 [prompt + n]: the prompt and all that was sampled after it."""
        return _joined([self.prompt.token_ids, self.sampled_ids])


@dataclass(frozen=True, slots=True, eq=False)
class Rollout(Record):
    """The calls of one attempt at one task, in the order they were made, and its reward.

    Attributes:
        rollout_id: unique in a run.
        turns: the calls; retries and branches included.
        reward: valid, invalid with a reason, or None while nobody has scored it.
        group_id: rollouts of one prompt share it (GRPO's group); empty if there is no group.
        masked: why the whole rollout is kept out of the loss; None if it isn't.
        metadata: whatever the caller wants to find again; JSON values.

    Raises:
        ContractError: an empty `rollout_id`, or no turn in a rollout that is not masked.
    """

    rollout_id: str
    turns: tuple[Turn, ...]
    reward: Reward | None = None
    group_id: str = ""
    masked: MaskReason | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rollout_id:
            raise ContractError("a rollout needs a rollout_id")
        object.__setattr__(self, "turns", tuple(self.turns))
        object.__setattr__(self, "metadata", dict(self.metadata))
        if self.masked is not None:
            object.__setattr__(self, "masked", MaskReason(self.masked))
        elif not self.turns:
            raise ContractError(
                f"rollout {self.rollout_id!r} has no turn; a rollout that failed before its first "
                "token is kept with masked=MaskReason.ENGINE_FAILED"
            )

    @property
    def trainable(self) -> bool:
        """Whether it may enter the loss: not masked, and its reward is valid and not masked."""
        return (
            self.masked is None
            and self.reward is not None
            and self.reward.valid
            and not self.reward.mask_sample
        )

    @property
    def sampled_tokens(self) -> int:
        """How many tokens its turns sampled, retries included."""
        return sum(len(span) for turn in self.turns for span in turn.generation)


def _joined(parts: list[npt.NDArray[_Scalar]]) -> npt.NDArray[_Scalar]:
    array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    array.flags.writeable = False
    return array
