"""A conversation as the policy's chat template renders it, and which tokens of it were sampled.

NeMo-RL's own processors render every beginning of a conversation and take what each adds. That
repeats text where a template renders a turn otherwise once more follows (reasoning left out of
the history, results of parallel calls in one turn), trains the assistant's header, and adds a BOS
and an EOS that the template doesn't write. Here the whole is rendered once, and is what is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge.onpolicy.template import ChatTemplate
from rlbridge.onpolicy.tokenizer import encode


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation.

    Attributes:
        text: as rendered.
        token_ids: of the text, encoded by itself: as an engine encodes a prompt and samples on.
        sampled: whether the policy would have sampled it, through its turn end.
    """

    text: str
    token_ids: list[int]
    sampled: bool


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole conversation.

    Attributes:
        pieces: in order; the last one is sampled.
        changed_turns: assistant's turns that the whole renders otherwise than they were sampled;
            they are context only.
    """

    pieces: list[Piece]
    changed_turns: int


class Renderer:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: the policy's, with its chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._eos: int | None = tokenizer.eos_token_id
        self._ends = {self._template.turn_end, tokenizer.eos_token or ""} - {""}

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> Rendered:
        """Render a conversation that ends with the assistant.

        Raises:
            ConfigError: the template refuses it, or renders its last turn otherwise than the
                policy would go on from the prompt.
        """
        whole = self._template.render(messages, tools=tools, generation_prompt=False)
        pieces: list[Piece] = []
        at = learned = changed = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._template.render(messages[:index], tools=tools)
            turn_closed = self._template.render(
                messages[: index + 1], tools=tools, generation_prompt=False
            )
            if not (whole.startswith(turn_closed) and turn_closed.startswith(prompt)):
                changed += 1
                continue
            learned = len(turn_closed)
            sampled, rest = self._split(turn_closed[len(prompt) :], last=learned == len(whole))
            pieces += [self._piece(whole[at : len(prompt)], sampled=False), sampled]
            at = learned - len(rest)
        if learned != len(whole):
            raise ConfigError(
                "the chat template renders the last answer otherwise than the policy would go on "
                "from the prompt, so there is nothing of it to learn; see what the template does "
                "with `rlbridge tokens lint`"
            )
        return Rendered(pieces, changed)

    def _piece(self, text: str, *, sampled: bool) -> Piece:
        return Piece(text, encode(self._tokenizer, text), sampled)

    def _split(self, turn: str, *, last: bool) -> tuple[Piece, str]:
        """A turn through its end, and what the template writes behind that."""
        found = max((turn.rfind(end) + len(end) for end in self._ends if end in turn), default=0)
        if found:
            return self._piece(turn[:found], sampled=True), turn[found:]
        ids = encode(self._tokenizer, turn)
        # The template has no turn end here; without any the policy would never learn to stop.
        ids += [self._eos] if last and self._eos is not None else []
        return Piece(turn, ids, sampled=True), ""
