"""When two messages say the same. Decides what a client may re-encode without leaving its history.

What was written to the engine (system, user, tool) must come back letter for letter, in whatever
form the API allows for the same text; a tool's result that is JSON must be the same JSON. An
answer of ours may come back re-encoded: other white space, JSON spacing and key order, arguments
as an object, reasoning dropped or put into the content between its marks, text beside tool calls
dropped (the call IDs say whose it is). Changed words, names or arguments are another history.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from rlbridge.contracts import wire
from rlbridge.parsing.style import REASONING_MARKS

Json = Mapping[str, Any]

_REASONING = tuple(
    (re.compile(f"^\\s*(?:{re.escape(opening)})?(.*?){re.escape(closing)}", re.DOTALL), closing)
    for opening, closing in REASONING_MARKS.values()
)


@dataclass(frozen=True, slots=True)
class Said:
    """What an assistant message says, whatever its encoding.

    Attributes:
        text: of the content, runs of white space as one space; of JSON, the value.
        reasoning: likewise; None where there is none (it may have been dropped).
        calls: name and arguments of each tool call.
        call_ids: of the tool calls.
    """

    text: str
    reasoning: str | None
    calls: tuple[tuple[str, str], ...]
    call_ids: tuple[str, ...]

    def is_echo_of(self, ours: "Said") -> bool:
        """Whether this is our answer, come back from a client."""
        if self.calls != ours.calls:
            return False
        if self.reasoning is not None and self.reasoning != (ours.reasoning or ""):
            return False
        if self.text == ours.text:
            return True
        return not self.text and bool(self.call_ids) and self.call_ids == ours.call_ids


def said(message: Json) -> Said:
    """What an assistant message says."""
    text = _flat(message.get("content"))
    reasoning = message.get("reasoning") or message.get("reasoning_content") or None
    for pattern, closing in _REASONING:
        if closing in text:
            found = pattern.match(text)
            if found:
                reasoning = reasoning or found.group(1)
                text = text[found.end() :]
            break
    calls = message.get("tool_calls") or ()
    return Said(
        _loose(text),
        None if reasoning is None else _loose(str(reasoning)),
        tuple(_call(call) for call in calls),
        tuple(str(call.get("id") or "") for call in calls),
    )


def key_of(message: Json) -> Hashable:
    """Equal for messages that are the same in a history; for those not sampled here."""
    role = message.get("role")
    if role == "assistant":
        mine = said(message)
        return role, mine.text, mine.reasoning, mine.calls
    text = _flat(message.get("content"))
    if role == "tool":
        text = _json_or(text, text)
    return role, text, message.get("name"), message.get("tool_call_id")


def without_tokens(message: dict[str, Any]) -> dict[str, Any]:
    """The message without token fields, which may be a hundred times longer than the rest."""
    if wire.GENERATION_TOKEN_IDS in message or wire.PROMPT_TOKEN_IDS in message:
        return {key: value for key, value in message.items() if key not in wire.TOKEN_FIELDS}
    return message


def _flat(content: object) -> str:
    """Content as one text; parts that are no text stand for themselves as JSON."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()
    texts = []
    for part in content:
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            text = orjson.dumps(part, option=orjson.OPT_SORT_KEYS).decode()
        texts.append(text)
    return "".join(texts)


def _loose(text: str) -> str:
    flat = " ".join(text.split())
    return _json_or(flat, flat)


def _json_or(text: str, otherwise: str) -> str:
    """The JSON object or array in `text`, written the one way; `otherwise` if it is none."""
    stripped = text.strip()
    if not stripped or stripped[0] + stripped[-1] not in {"{}", "[]"}:
        return otherwise
    try:
        return orjson.dumps(orjson.loads(stripped), option=orjson.OPT_SORT_KEYS).decode()
    except ValueError:
        return otherwise


def _call(call: Json) -> tuple[str, str]:
    function = call.get("function") or call.get("custom") or {}
    arguments = function.get("arguments", function.get("input"))
    if not isinstance(arguments, str):
        arguments = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()
    return str(function.get("name")), _json_or(arguments, " ".join(arguments.split()))
