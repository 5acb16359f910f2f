"""A tokenizer with a chat template and nothing to download: a token a byte, and a few marks.

ChatML with `<think>` and Hermes tool calls, as in Qwen's templates. It has what
`rlbridge.onpolicy` asks of a tokenizer; a text has exactly one encoding, so it never drifts.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MARKS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>",
          "</tool_call>", "<tool_response>", "</tool_response>")  # fmt: skip
_SPECIAL = 3  # the first three are left out of text, as special tokens are


@dataclass(frozen=True)
class AddedToken:
    """A mark, in the words of Hugging Face's `added_tokens_decoder`."""

    content: str
    special: bool

    def __str__(self) -> str:
        return self.content


class ByteTokenizer:
    """IDs 0 to 255 are bytes, the marks follow.

    Attributes:
        chat_template: the marks that `apply_chat_template` writes, for `rlbridge.parsing.detect`.
        vocab_size: IDs are below it.
    """

    eos_token = _MARKS[0]
    eos_token_id = 256
    name_or_path = "rlbridge/byte-tokenizer"
    chat_template = "".join(_MARKS)
    vocab_size = 256 + len(_MARKS)

    def __init__(self) -> None:
        self.added_tokens_decoder: Mapping[int, AddedToken] = {
            256 + index: AddedToken(mark, index < _SPECIAL) for index, mark in enumerate(_MARKS)
        }
        self._ids = {token.content: number for number, token in self.added_tokens_decoder.items()}
        self._split = re.compile("(" + "|".join(map(re.escape, _MARKS)) + ")")

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The IDs of `text`; there are no special tokens to add."""
        del add_special_tokens
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._ids:
                ids.append(self._ids[part])
            else:
                ids.extend(part.encode())
        return ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `token_ids`; broken UTF-8 becomes U+FFFD."""
        return self.bytes_of(token_ids, skip_special_tokens=skip_special_tokens).decode(
            errors="replace"
        )

    def bytes_of(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of `token_ids`."""
        parts = bytearray()
        for number in token_ids:
            token = self.added_tokens_decoder.get(int(number))
            if token is None:
                parts.append(int(number))
            elif not (skip_special_tokens and token.special):
                parts.extend(token.content.encode())
        return bytes(parts)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        **kwargs: Any,
    ) -> Any:
        """A conversation as text, or as IDs."""
        del kwargs
        parts = []
        if tools:
            lines = "\n".join(json.dumps(tool) for tool in tools)
            parts.append(f"<|im_start|>system\n# Tools\n{lines}<|im_end|>\n")
        parts += [_rendered(message) for message in conversation]
        if add_generation_prompt:
            parts.append("<|im_start|>assistant\n")
        text = "".join(parts)
        return self.encode(text) if tokenize else text


def _rendered(message: Mapping[str, Any]) -> str:
    role, content = message["role"], message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    if role == "tool":
        return f"<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n"
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning:
        content = f"<think>\n{reasoning}\n</think>\n\n{content}"
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        written = json.dumps({"name": function["name"], "arguments": arguments})
        content += f"\n<tool_call>\n{written}\n</tool_call>"
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"
