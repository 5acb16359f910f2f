"""What an answer says, for engines that don't tell: the model's marks, read by `rlbridge.parsing`.

Refuses nothing: text in which no call can be read is content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlbridge.contracts.rollout import FinishReason
from rlbridge.contracts.tokens import PromptSpan
from rlbridge.engines.engine import Generation
from rlbridge.gateway.config import ParsingConfig
from rlbridge.onpolicy.tokenizer import ChatTokenizer, decode
from rlbridge.parsing.message import ParsedDelta, chat_call
from rlbridge.parsing.stream import StreamParser, parse
from rlbridge.parsing.style import ReasoningStyle, Style, ToolStyle, detect, opens_reasoning

# The marks that open reasoning are a few tokens at the prompt's end.
_TAIL = 12
_TAILS = 256

Tools = Sequence[Mapping[str, Any]] | None


class AnswerReader:
    """Reads the answers of one model.

    Args:
        tokenizer: of the model.
        config: which marks it uses, or that its chat template says so.
    """

    def __init__(self, tokenizer: ChatTokenizer, config: ParsingConfig) -> None:
        self._tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, Mapping):
            template = template.get("tool_use") or template.get("default")
        found = detect(template) if isinstance(template, str) else Style()
        self.style = Style(
            found.tools if config.tools == "auto" else ToolStyle(config.tools),
            found.reasoning if config.reasoning == "auto" else ReasoningStyle(config.reasoning),
        )
        specials = {
            str(getattr(token, "content", token))
            for token in tokenizer.added_tokens_decoder.values()
            if getattr(token, "special", True)
        }
        # Marks that are special tokens aren't in the text that engines report.
        self.marks_hidden = any(mark in specials for mark in self.style.marks)
        self._opened: dict[bytes, bool] = {}

    def message(
        self, generation: Generation, prompt: PromptSpan | None, tools: Tools, seed: str
    ) -> dict[str, Any]:
        """The assistant message of an answer, in Chat form.

        Args:
            generation: the answer.
            prompt: what it answered; None if nobody knows.
            tools: what it may call; None leaves calls in the content.
            seed: names the answer; tool call IDs are made from it.
        """
        if generation.message is not None:
            return _engines(generation.message, seed)
        text = self._text(generation)
        parsed = parse(text, self._style(tools), opened=self._is_open(prompt), tools=tools)
        message = parsed.as_chat(seed)
        if message["content"] is None and not message.get("tool_calls"):
            message["content"] = "" if parsed.reasoning is None else None
        return message

    def stream(self, prompt: PromptSpan | None, tools: Tools) -> StreamParser | None:
        """A parser of text as it comes; None where the marks aren't in the text."""
        if self.marks_hidden:
            return None
        return StreamParser(self._style(tools), opened=self._is_open(prompt), tools=tools)

    def _style(self, tools: Tools) -> Style:
        return self.style if tools else replace(self.style, tools=ToolStyle.NONE)

    def _is_open(self, prompt: PromptSpan | None) -> bool:
        if prompt is None or self.style.reasoning is ReasoningStyle.NONE:
            return False
        key = prompt.token_ids[-_TAIL:].tobytes()
        known = self._opened.get(key)
        if known is None:
            text = decode(self._tokenizer, prompt.token_ids[-_TAIL:])
            known = opens_reasoning(text, self.style)
            if len(self._opened) >= _TAILS:
                self._opened.clear()
            self._opened[key] = known
        return known

    def _text(self, generation: Generation) -> str:
        if not self.marks_hidden or generation.turn is None:
            return generation.text
        ids = generation.turn.sampled_ids
        last = self._tokenizer.added_tokens_decoder.get(int(ids[-1]))
        if generation.finish is FinishReason.STOP and last is not None:
            ids = ids[:-1]
        text = decode(self._tokenizer, ids)
        if isinstance(generation.stop_reason, str):
            text = text.rpartition(generation.stop_reason)[0] or text
        return text


def chat_delta(delta: ParsedDelta, seed: str, calls_before: int) -> dict[str, Any]:
    """A parsed delta in Chat form."""
    chat: dict[str, Any] = {}
    if delta.reasoning:
        chat["reasoning"] = delta.reasoning
    if delta.content:
        chat["content"] = delta.content
    if delta.tool_calls:
        chat["tool_calls"] = [
            {"index": index, **chat_call(call, seed, index)}
            for index, call in enumerate(delta.tool_calls, calls_before)
        ]
    return chat


def _engines(message: Mapping[str, Any], seed: str) -> dict[str, Any]:
    """An engine's own message: what the Chat API has of it, and a name for each call."""
    done: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning:
        done["reasoning"] = reasoning
    calls = message.get("tool_calls")
    if calls:
        done["tool_calls"] = [
            {
                "id": call.get("id") or f"call_{seed}_{index}",
                "type": "function",
                "function": dict(call.get("function") or {}),
            }
            for index, call in enumerate(calls)
        ]
    if done["content"] is None and not calls and not reasoning:
        done["content"] = ""
    return done
