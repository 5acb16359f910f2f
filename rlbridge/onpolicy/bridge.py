"""The next prompt, from the last one and what was sampled, without encoding anything twice.

The bridge appends; it never re-renders what the engine has seen. Its cost is that of the new
messages. It refuses, with a reason, what it can't prove: assistant messages (their tokens were
sampled somewhere), roles after which the template behaves differently from one history to the
next, renderings it can't cut.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import PromptSpan, Provenance, as_token_ids
from rlbridge.onpolicy.refusal import Refusal, RefusalReason
from rlbridge.onpolicy.template import (
    ANSWER,
    DUMMY_TOOLS,
    NEW_MESSAGES,
    NEWS,
    ChatTemplate,
    Check,
    Messages,
    TemplateError,
    kind_of,
    prove,
    roles_refused,
)
from rlbridge.onpolicy.tokenizer import ChatTokenizer, Tools, decode, encode

# How far back a stop string may reach into the sampled tokens.
_STOP_WINDOW = 32
_ANCHORS = (ANSWER, "0", ".", ")", "\u3002")


class Close(StrEnum):
    """How the sampled turn came to its end in the next prompt."""

    SAMPLED = "sampled"
    """The engine sampled the turn end, or another end of sequence that stands for it."""
    ADDED = "added"
    """It did not (truncation, a stop string): the template's turn end was appended."""
    OPEN = "open"
    """The template has no turn end."""


@dataclass(frozen=True, slots=True)
class Bridged:
    """The next prompt.

    Attributes:
        prompt: begins with the last prompt and all that was sampled; the rest is BRIDGE, an
            appended turn end REPAIRED.
        appended_from: the index of the first appended token.
        close: how the sampled turn ended.
    """

    prompt: PromptSpan
    appended_from: int
    close: Close


class Renderer(Protocol):
    """What is used of a renderer of the `renderers` library (PyPI)."""

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: list[Any],
        *,
        tools: Any = None,
    ) -> Any:
        """Rendered tokens with `token_ids`, or None."""
        ...


class Bridge:
    """Extends prompts of one tokenizer and template; made once, proven at birth.

    Args:
        tokenizer: with a chat template.
        ends: IDs that end a generation besides the template's turn end (`eos_token_id` of the
            generation config, stop token IDs). The tokenizer's EOS is always one.
        renderer: the model's renderer of the `renderers` library, asked first.
        **options: passed to the template at every rendering.

    Attributes:
        checks: what `rlbridge.onpolicy.template.prove` found.
        refused: the kinds of new messages it will not append, and why.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        ends: Iterable[int] = (),
        renderer: Renderer | None = None,
        **options: Any,
    ) -> None:
        self.template = ChatTemplate(tokenizer, **options)
        self.checks: list[Check] = prove(self.template)
        self.refused = roles_refused(self.checks)
        self._renderer = renderer
        self._tokenizer = tokenizer
        eos = tokenizer.eos_token_id
        self._ends = frozenset(ends) | ({eos} if eos is not None else frozenset())
        self._tools_matter = _tools_matter(self.template)
        self._anchor = _anchor(tokenizer)
        self._closers = _closers(self.template)

    def next_prompt(
        self, turn: Turn, new_messages: Messages, *, tools: Tools | None = None
    ) -> Bridged | Refusal:
        """The prompt after `turn` and `new_messages`, ready for the engine to go on.

        Args:
            turn: the call whose answer the new messages follow.
            new_messages: what came after the answer, without the answer; no assistant messages.
            tools: the tools of the next request, as its template would get them.

        Returns:
            A prompt that begins with `turn.token_ids`, or a refusal.
        """
        if not new_messages:
            return Refusal(RefusalReason.NO_MESSAGES, "no message follows the sampled turn")
        if any(message.get("role") == "assistant" for message in new_messages):
            return Refusal(
                RefusalReason.ASSISTANT_MESSAGE,
                "new messages hold an assistant message; pass what follows the last one sampled",
            )
        if self._renderer is not None:
            bridged = bridge_by_renderer(self._renderer, turn, new_messages, tools=tools)
            if isinstance(bridged, Bridged):
                return bridged
        kind = kind_of(new_messages)
        if kind in self.refused or not kind:
            why = self.refused.get(kind, "this sequence of roles was not tried")
            return Refusal(RefusalReason.TEMPLATE, f"{kind or 'mixed'} messages: {why}")
        try:
            tail = self.template.tail(new_messages, tools=tools if self._tools_matter else None)
        except TemplateError as error:
            return Refusal(RefusalReason.TEMPLATE, str(error))
        ids, close = self._close(turn, tail)
        return _appended(turn, ids, close)

    def _close(self, turn: Turn, tail: str) -> tuple[list[int], Close]:
        """The tail's IDs without what the sampled tokens already hold of it."""
        last = int(turn.sampled_ids[-1])
        ids = self._encode_after(tail)
        # The first of them stands before the new messages' text, which may hold another.
        first = next((i for i, token in enumerate(ids) if token in self._closers), None)
        if first is not None and ids[first] == last:
            return ids[first + 1 :], Close.SAMPLED
        if not self.template.turn_end:
            return self._without_overlap(turn, tail, ids), Close.OPEN
        if first is not None and last in self._ends:
            return ids[first + 1 :], Close.SAMPLED
        return ids, Close.ADDED

    def _without_overlap(self, turn: Turn, tail: str, ids: list[int]) -> list[int]:
        """A stop string is sampled too; where it begins the tail, it isn't written twice."""
        if turn.finish is not FinishReason.STOP or not isinstance(turn.stop_reason, str):
            return ids
        text = decode(self._tokenizer, turn.sampled_ids[-_STOP_WINDOW:])
        for length in range(min(len(text), len(tail)), 0, -1):
            if text.endswith(tail[:length]):
                return self._encode_after(tail[length:])
        return ids

    def _encode_after(self, text: str) -> list[int]:
        """IDs of `text` as it stands inside a prompt, not at its beginning.

        A tokenizer that puts a space before the first word of a text must not put it here.
        """
        if any(text.startswith(special) for special in self.template.specials.values()):
            return encode(self._tokenizer, text)
        anchor, ids = self._anchor
        together = encode(self._tokenizer, anchor + text)
        if together[: len(ids)] == ids:
            return together[len(ids) :]
        for anchor in _ANCHORS:  # the usual one merges with this text: any other will do
            alone = encode(self._tokenizer, anchor)
            together = encode(self._tokenizer, anchor + text)
            if together[: len(alone)] == alone:
                return together[len(alone) :]
        return encode(self._tokenizer, text)


def bridge_by_renderer(
    renderer: Renderer, turn: Turn, new_messages: Messages, *, tools: Tools | None = None
) -> Bridged | Refusal:
    """The next prompt by a renderer of the `renderers` library.

    Its result is checked: it must begin with the turn's own tokens. A renderer cuts what was
    sampled after a turn end, which would take trained tokens out of their context.
    """
    known = turn.token_ids
    rendered = renderer.bridge_to_next_turn(
        turn.prompt.token_ids.tolist(), turn.sampled_ids.tolist(), list(new_messages), tools=tools
    )
    if rendered is None:
        return Refusal(RefusalReason.RENDERER, "the renderer asks for a full rendering")
    ids = as_token_ids(rendered.token_ids)
    if len(ids) <= len(known) or not np.array_equal(ids[: len(known)], known):
        return Refusal(RefusalReason.RENDERER, "the renderer changed tokens the engine has seen")
    return _appended(turn, ids[len(known) :].tolist(), Close.SAMPLED)


def _appended(turn: Turn, ids: Sequence[int], close: Close) -> Bridged:
    codes = np.full(len(ids), Provenance.BRIDGE, dtype=np.uint8)
    if close is Close.ADDED:
        codes[0] = Provenance.REPAIRED
    added = PromptSpan(as_token_ids(ids, vocab_size=turn.prompt.vocab_size), codes)
    prompt = PromptSpan.joined([turn.prompt, *turn.generation, added])
    return Bridged(prompt, len(prompt) - len(ids), close)


def _closers(template: ChatTemplate) -> frozenset[int]:
    """The special tokens that come first after an answer: the turn end, or the next header."""
    found = set()
    for kind in NEW_MESSAGES.values():
        try:
            tail = template.tail(kind)
        except TemplateError:
            continue
        ids = encode(template.tokenizer, tail[: tail.find(NEWS)])
        found |= set([token for token in ids if token in template.specials][:1])
    return frozenset(found)


def _tools_matter(template: ChatTemplate) -> bool:
    """Whether tools change the tail; where they don't, they aren't rendered every turn."""
    for news in NEW_MESSAGES.values():
        try:
            if template.tail(news, tools=DUMMY_TOOLS) != template.tail(news):
                return True
        except TemplateError:
            continue
    return False


def _anchor(tokenizer: ChatTokenizer) -> tuple[str, list[int]]:
    """Text to put before a tail that begins with none of the special tokens, and its IDs."""
    tests: tuple[Callable[[str], str], ...] = (lambda a: a + "\n", lambda a: a + " ")
    for anchor in _ANCHORS:
        ids = encode(tokenizer, anchor)
        if all(encode(tokenizer, test(anchor))[: len(ids)] == ids for test in tests):
            return anchor, ids
    return ANSWER, encode(tokenizer, ANSWER)
