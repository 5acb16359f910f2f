"""Keep the engine's tokens in a prompt that somebody else rendered. Refuses another history.

NeMo-RL does this by finding one EOS (`_replace_prefix_tokens`, v0.5 to v0.7). Where that is right
the result here is the same. Here the turns of both sequences are paired, and each pair must be
one message: so reasoning stripped from the history costs no user turn, an answer without token
IDs stays as rendered, and an edited history is refused, not overwritten. Images aren't followed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import BoolArray, IntArray, PromptSpan, Provenance, as_token_ids
from rlbridge.onpolicy.drift import Messages, cut_messages, first_difference, kind_of_message
from rlbridge.onpolicy.explanation import DriftKind
from rlbridge.onpolicy.refusal import Refusal, RefusalReason
from rlbridge.onpolicy.tokenizer import Tokenizer

_Scalar = TypeVar("_Scalar", bound=np.generic)
_OTHER_MESSAGE = frozenset({DriftKind.EDITED_HISTORY, DriftKind.UNKNOWN})


@dataclass(frozen=True, slots=True)
class Spliced:
    """A prompt that begins with the engine's own tokens.

    Attributes:
        token_ids: int32 [n].
        at: index of the first token that was changed; -1 if the rendering was right.
        replaced: how many tokens of the rendering, from `at` on, gave way.
        kept: how many of the engine's tokens stand in their place.
        kinds: why, for every message that differed as text.
    """

    token_ids: IntArray
    at: int = -1
    replaced: int = 0
    kept: int = 0
    kinds: tuple[DriftKind, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the rendering was not what it should be."""
        return self.at >= 0


def splice(
    known: npt.ArrayLike,
    rendered: npt.ArrayLike,
    tokenizer: Tokenizer,
    *,
    ends: Iterable[int] | None = None,
    sampled: BoolArray | None = None,
) -> Spliced | Refusal:
    """The rendered prompt with the engine's tokens in place of their re-encoding.

    Args:
        known: int [k], the previous prompt and all that was sampled after it; may be empty.
        rendered: int [n], the next prompt as rendered from messages.
        tokenizer: of both; used to compare what differs as text.
        ends: IDs that end a turn; the tokenizer's EOS if None. A turn that ended on any of them
            gets no second end.
        sampled: bool [k], which tokens of `known` were sampled; None if nobody knows.

    Returns:
        A prompt that begins with `known` and goes on with everything in `rendered` behind it, or
        a refusal. Splicing twice equals splicing once.
    """
    old, new = as_token_ids(known), as_token_ids(rendered)
    at = first_difference(old, new)
    if at == len(old):
        return Spliced(new)
    if ends is None:
        ends = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    ours, theirs = (cut_messages(ids, frozenset(ends)) for ids in (old, new))
    complete = len(theirs) - (not theirs.closed)
    if complete < len(ours):
        return _too_few(ours, theirs, complete, at)
    kinds = _compare(ours, theirs, tokenizer, sampled, at)
    if isinstance(kinds, Refusal):
        return kinds
    stop = int(theirs.stops[len(ours) - 1])
    tail = new[stop if ours.closed else stop - 1 :]
    replaced = max(0, len(new) - len(tail) - at)
    return Spliced(_frozen(np.concatenate([old, tail])), at, replaced, len(old) - at, kinds)


def splice_turn(
    turn: Turn, rendered: npt.ArrayLike, tokenizer: Tokenizer, *, ends: Iterable[int] | None = None
) -> tuple[PromptSpan, Spliced] | Refusal:
    """`splice` for a captured call: the next prompt with the provenance of every token.

    Tokens the engine had and the rendering had not are REPAIRED, unless they were sampled.
    """
    known = _frozen(
        np.concatenate([turn.prompt.provenance, *(span.provenance for span in turn.generation)])
    )
    sampled = np.isin(known, (Provenance.SAMPLED, Provenance.MISSING))
    spliced = splice(turn.token_ids, rendered, tokenizer, ends=ends, sampled=sampled)
    if isinstance(spliced, Refusal):
        return spliced
    codes = np.full(len(spliced.token_ids), Provenance.PROMPT, dtype=np.uint8)
    codes[: len(known)] = known
    if spliced.changed:
        repaired = codes[spliced.at : len(known)]
        repaired[~sampled[spliced.at :]] = Provenance.REPAIRED
    span = PromptSpan(spliced.token_ids, _frozen(codes), turn.prompt.vocab_size)
    return span, spliced


def _compare(
    ours: Messages, theirs: Messages, tokenizer: Tokenizer, sampled: BoolArray | None, at: int
) -> tuple[DriftKind, ...] | Refusal:
    """The kinds of difference between paired messages, or why they aren't pairs."""
    kinds: list[DriftKind] = []
    first = int(np.searchsorted(ours.stops, at, side="right"))
    for message in range(first, len(ours)):
        if np.array_equal(ours.ids(message), theirs.ids(message)):
            continue
        start, stop = ours.span(message)
        last = message == len(ours) - 1
        is_sampled = last if sampled is None else bool(sampled[start:stop].any())
        kind = kind_of_message(ours, theirs, message, tokenizer, sampled=is_sampled)
        if kind is DriftKind.TRUNCATED:
            return Refusal(
                RefusalReason.TURN_LOST,
                f"message {message} of the rendering is a later one of the engine's: messages "
                "were left out (compaction, truncation); start a new sequence",
                start,
            )
        if kind in _OTHER_MESSAGE:
            return Refusal(
                RefusalReason.EDITED_HISTORY,
                f"message {message} isn't the one the engine had; start a new sequence",
                start,
            )
        if kind is not None:
            kinds.append(kind)
    return tuple(kinds)


def _too_few(ours: Messages, theirs: Messages, complete: int, at: int) -> Refusal:
    if not complete:
        return Refusal(
            RefusalReason.NO_TURN_END,
            "the rendering holds no turn end; pass the template's own turn end in `ends`",
            at,
        )
    return Refusal(
        RefusalReason.TURN_LOST,
        f"the engine saw {len(ours)} messages and the rendering closes {complete}; "
        "start a new sequence",
        int(theirs.stops[-1]),
    )


def _frozen(array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    array.flags.writeable = False
    return array
