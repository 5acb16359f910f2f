"""Tokenizers for commands: load one, what ends its turns, and how its template wants messages."""

import json
from pathlib import Path
from typing import Any, Literal

from rlbridge.cli.rollout_options import Reasoning
from rlbridge.errors import ConfigError
from rlbridge.transforms.messages import Style

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_MARK = "rlbridge-reasoning-mark"


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model or a folder.

    Raises:
        ConfigError: there is none, or no library to load it.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError("this needs tokenizers: pip install 'rlbridge[tokens]'") from error
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"no tokenizer at {model!r}: {first}") from error


def turn_ends(model: str, tokenizer: Any) -> set[int]:
    """What ends a turn: EOS, the template's turn end, and the generation config's list."""
    from rlbridge.onpolicy.template import ChatTemplate

    ends = {tokenizer.eos_token_id} - {None}
    config = Path(model) / "generation_config.json"
    if config.exists():
        listed = json.loads(config.read_text()).get("eos_token_id")
        ends |= set(listed if isinstance(listed, list) else [listed]) - {None}
    if tokenizer.chat_template:
        turn_end = ChatTemplate(tokenizer).turn_end
        ends |= {tokenizer.convert_tokens_to_ids(turn_end)} if turn_end else set()
    return ends


def style_of(model: str) -> Style:
    """How the model's chat template wants reasoning and tool arguments, found by trial.

    Raises:
        ConfigError: there is no tokenizer, or it has no chat template.
    """
    tokenizer = load_tokenizer(model)
    if not tokenizer.chat_template:
        raise ConfigError(f"{model} has no chat template, so it has no form for messages")
    field = next((name for name in _REASONING_FIELDS if _reads(tokenizer, name)), None)
    reasoning: Literal["field", "think"] = "think" if field is None else "field"
    return Style(reasoning, field or "reasoning_content", _arguments(tokenizer))


def style_for(model: str | None, reasoning: Reasoning | None) -> Style | None:
    """What the user says, else what the model's template reads, else the format's own default."""
    if model is not None:
        style = style_of(model)
        return style if reasoning is None else Style(reasoning.value, arguments=style.arguments)
    return None if reasoning is None else Style(reasoning.value)


def _reads(tokenizer: Any, field: str) -> bool:
    """Whether the template prints a message's reasoning under this name."""
    answer = {"role": "assistant", "content": "4", field: _MARK}
    return _MARK in _rendered(tokenizer, [{"role": "user", "content": "2+2?"}, answer])


def _arguments(tokenizer: Any) -> Literal["object", "string"]:
    """`string` only where an object comes out as no JSON and a string does."""
    prints = {}
    for form, given in (("object", {"city": "Rome"}), ("string", '{"city": "Rome"}')):
        call = {"id": "call_0", "type": "function",
                "function": {"name": "weather", "arguments": given}}  # fmt: skip
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        text = _rendered(tokenizer, [{"role": "user", "content": "Rain?"}, answer])
        prints[form] = '"city"' in text and "\\" not in text
    return "string" if prints["string"] and not prints["object"] else "object"


def _rendered(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    """The template's text; empty where it refuses such messages."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # noqa: BLE001 # a template raises what it likes: its way to say no
        return ""
