"""Where two token sequences part, for how long, in which turn, and which kind of parting it is.

`known` is what the engine had: a prompt and what it sampled. `rendered` is the next prompt. If
the one begins with the other there is no drift; a turn cut short without a turn end and continued
by one is a clean extension.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlbridge.contracts.tokens import BoolArray, IntArray, as_token_ids
from rlbridge.onpolicy.explanation import REPLACEMENT, DriftKind, explain
from rlbridge.onpolicy.tokenizer import Tokenizer, decode, special_ids


@dataclass(frozen=True, slots=True)
class Drift:
    """The first parting of two sequences.

    Attributes:
        kind: which kind it is.
        at: index of the first token that differs, the same in both.
        known_length: tokens of the engine's sequence until both agree again in this message.
        rendered_length: tokens of the rendering until then.
        message: index of the message it is in (messages are told apart by turn ends).
        sampled: whether the message holds tokens the engine sampled.
        known_text: the engine's differing tokens as text.
        rendered_text: the rendering's.
    """

    kind: DriftKind
    at: int
    known_length: int
    rendered_length: int
    message: int
    sampled: bool
    known_text: str
    rendered_text: str


@dataclass(frozen=True, slots=True)
class Messages:
    """A sequence cut behind every turn end.

    Attributes:
        token_ids: int32 [n].
        stops: int64 [m]: where each message ends, its turn end included; the last may have none.
        closed: whether the last message has its turn end.
    """

    token_ids: IntArray
    stops: npt.NDArray[np.int64]
    closed: bool

    def __len__(self) -> int:
        return len(self.stops)

    def span(self, message: int) -> tuple[int, int]:
        """Start and stop of a message."""
        return (int(self.stops[message - 1]) if message else 0), int(self.stops[message])

    def ids(self, message: int) -> IntArray:
        """The message's tokens without its turn end."""
        start, stop = self.span(message)
        open_end = message == len(self) - 1 and not self.closed
        return self.token_ids[start : stop if open_end else stop - 1]


def first_difference(a: IntArray, b: IntArray) -> int:
    """Index of the first token that differs; the shorter length if there is none."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    at = int(np.argmax(different)) if n else 0
    return at if n and different[at] else n


def cut_messages(token_ids: IntArray, ends: Collection[int]) -> Messages:
    """Cut a sequence behind every token of `ends`."""
    stops = np.flatnonzero(np.isin(token_ids, list(ends))) + 1
    closed = bool(len(stops)) and int(stops[-1]) == len(token_ids)
    if not closed and len(token_ids):
        stops = np.append(stops, len(token_ids))
    return Messages(token_ids, stops, closed)


def diagnose(
    known: npt.ArrayLike,
    rendered: npt.ArrayLike,
    tokenizer: Tokenizer,
    *,
    ends: Iterable[int],
    sampled: BoolArray | None = None,
) -> Drift | None:
    """The first parting of a prompt from what the engine had before.

    Args:
        known: int [k], the previous prompt and all that was sampled after it.
        rendered: int [n], the next prompt.
        tokenizer: of both.
        ends: IDs that end a turn.
        sampled: bool [k], which tokens of `known` the engine sampled; None if nobody knows.

    Returns:
        None if `rendered` begins with `known`.
    """
    old, new = as_token_ids(known), as_token_ids(rendered)
    at = first_difference(old, new)
    if at == len(old):
        return None
    ends = frozenset(ends)
    ours, theirs = cut_messages(old, ends), cut_messages(new, ends)
    message = int(np.searchsorted(ours.stops, at, side="right"))
    start, stop = ours.span(message)
    is_sampled = message == len(ours) - 1 if sampled is None else bool(sampled[start:stop].any())
    if at == len(new) or message >= len(theirs):
        gone = len(old) - at
        text = decode(tokenizer, old[at : at + 40])
        return Drift(DriftKind.TRUNCATED, at, gone, 0, message, is_sampled, text, "")
    a, b = _different(ours.ids(message), theirs.ids(message), at - start)
    kind = kind_of_message(ours, theirs, message, tokenizer, sampled=is_sampled)
    if kind is None:
        kind = token_kind(a, b, tokenizer)
    return Drift(
        kind, at, len(a), len(b), message, is_sampled, decode(tokenizer, a), decode(tokenizer, b)
    )


def kind_of_message(
    ours: Messages, theirs: Messages, message: int, tokenizer: Tokenizer, *, sampled: bool
) -> DriftKind | None:
    """Why one message differs as text; None if the text is the same."""
    text = decode(tokenizer, theirs.ids(message))
    kind = explain(decode(tokenizer, ours.ids(message)), text)
    accepted = kind in _ANYWHERE or (sampled and kind not in {DriftKind.UNKNOWN, None})
    if kind is None or accepted:
        return kind
    later = (decode(tokenizer, ours.ids(i)) for i in range(message + 1, len(ours)))
    if any(explain(other, text) in _SAME for other in later):
        return DriftKind.TRUNCATED
    return DriftKind.UNKNOWN if sampled else DriftKind.EDITED_HISTORY


# What a template may do to any message, not only to sampled ones.
_ANYWHERE = frozenset(
    {
        DriftKind.WHITESPACE,
        DriftKind.INVALID_UTF8,
        DriftKind.THINKING_STRIPPED,
        DriftKind.TOOL_JSON,
    }
)
_SAME = _ANYWHERE | {None}


def token_kind(known: IntArray, rendered: IntArray, tokenizer: Tokenizer) -> DriftKind:
    """Why tokens differ where the text is the same. Takes the differing tokens only."""
    specials = special_ids(tokenizer)
    if any(int(token) in specials for token in (*known, *rendered)):
        return DriftKind.SPECIAL_TOKEN
    texts = decode(tokenizer, known), decode(tokenizer, rendered)
    if any(REPLACEMENT in text for text in texts):
        return DriftKind.INVALID_UTF8
    firsts = decode(tokenizer, known[:1]), decode(tokenizer, rendered[:1])
    if all(not text.strip() for text in firsts) or not any(text.strip() for text in texts):
        return DriftKind.WHITESPACE
    if len(known) != len(rendered):
        return DriftKind.MERGE if len(known) > len(rendered) else DriftKind.SPLIT
    return DriftKind.MERGE if len(firsts[1]) > len(firsts[0]) else DriftKind.SPLIT


def _different(a: IntArray, b: IntArray, start: int) -> tuple[IntArray, IntArray]:
    """The tokens between the common beginning (`start` tokens) and the common end."""
    a, b = a[start:], b[start:]
    same = first_difference(a[::-1], b[::-1])
    return a[: len(a) - same], b[: len(b) - same]
