"""What this package asks of a tokenizer: the part of Hugging Face's interface it calls.

Tokenizers are handed in, never loaded here. `transformers.PreTrainedTokenizerFast` fits as it is.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rlbridge.contracts.tokens import Encoding

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]


class Decoder(Protocol):
    """IDs to text."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        """The text of `token_ids`; broken UTF-8 becomes U+FFFD."""
        ...


class Tokenizer(Decoder, Protocol):
    """Text to IDs and back."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The tokens that text is split at before anything else, by ID: the special ones."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """The primary end of sequence."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The IDs of `text`."""
        ...


class ChatTokenizer(Tokenizer, Protocol):
    """A tokenizer with a chat template."""

    def apply_chat_template(
        self,
        conversation: Any,
        *,
        tools: Any,
        add_generation_prompt: bool,
        tokenize: bool,
        **kwargs: Any,
    ) -> Any:
        """The text of a conversation (`tokenize=False`)."""
        ...


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """IDs of `text` and of nothing else: no BOS or EOS of the tokenizer's own."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    # Straight to the Rust core, at a third less; not where somebody left it cutting or padding.
    if core is not None and core.truncation is None and core.padding is None:
        ids: list[int] = core.encode(text, add_special_tokens=False).ids
        return ids
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer: Decoder, token_ids: Iterable[int]) -> str:
    """Text of `token_ids`, special tokens written out."""
    return tokenizer.decode([int(token) for token in token_ids], skip_special_tokens=False)


def special_ids(tokenizer: Tokenizer) -> dict[int, str]:
    """ID and text of every token the tokenizer splits text at."""
    return {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}


def encoding_of(tokenizer: Any) -> Encoding:
    """Hashes of a Hugging Face tokenizer's vocabulary and merges, and of its chat template.

    The same files give the same hashes, wherever they lie; costs one serialization, so call it
    once and keep the result.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    written = (
        core.to_str() if core is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    )
    template = getattr(tokenizer, "chat_template", None) or ""
    if not isinstance(template, str):
        template = json.dumps(template, sort_keys=True)
    return Encoding(_hash(written), _hash(template) if template else "")


@functools.cache
def _is_plain(kind: type) -> bool:
    """Whether tokenizers of this class encode as their core does, with nothing before or after."""
    ways = (getattr(kind, name, None) for name in ("encode", "_encode_plus"))
    return hasattr(kind, "backend_tokenizer") and all(
        str(getattr(way, "__module__", "")).startswith("transformers.tokenization_utils")
        for way in ways
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
