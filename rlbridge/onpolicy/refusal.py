"""Why a prompt could not be made token-exact. A value, because the rollout goes on, masked."""

from dataclasses import dataclass
from enum import StrEnum


class RefusalReason(StrEnum):
    """What stood in the way."""

    NO_TURN_END = "no_turn_end"
    """The rendering holds too few turn ends: the turns can't be told apart."""
    EDITED_HISTORY = "edited_history"
    """The history isn't the one the engine saw; its tokens would speak for another text."""
    TURN_LOST = "turn_lost"
    """The rendering has fewer turns than the engine saw: compacted or truncated."""
    ASSISTANT_MESSAGE = "assistant_message"
    """New messages hold an assistant message; sampled tokens can't be made from text."""
    TEMPLATE = "template"
    """The chat template was not proven to end a conversation alike in every history."""
    NO_MESSAGES = "no_messages"
    """There is nothing new to append."""
    RENDERER = "renderer"
    """The `renderers` library won't extend this turn."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was done, and why.

    Attributes:
        reason: the class of the obstacle.
        detail: what was seen and what to do about it.
        at: the index of the first token in question; -1 where there is none.
    """

    reason: RefusalReason
    detail: str
    at: int = -1
