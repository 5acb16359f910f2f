"""Why two renderings of one message differ: text against text. Knows the usual parsers' habits.

An agent sees a message as text and fields; the template writes it anew. What came back may lack
its reasoning, have its JSON re-spaced, or miss what a parser threw away. All of that is still the
message the engine sampled. Anything else is another message.
"""

import json
import re
from enum import StrEnum
from typing import Any


class DriftKind(StrEnum):
    """What kind of parting it is. The values are metric names."""

    MERGE = "merge"
    """Encoding the text anew made fewer tokens of it than were sampled."""
    SPLIT = "split"
    """Encoding the text anew made more tokens of it."""
    SPECIAL_TOKEN = "special_token"  # noqa: S105 # a kind of drift
    """A special token became plain text, or plain text a special token."""
    INVALID_UTF8 = "invalid_utf8"
    """Half a character was sampled; as text it is U+FFFD."""
    WHITESPACE = "whitespace"
    """Spaces or newlines merged, were trimmed or added."""
    THINKING_STRIPPED = "thinking_stripped"
    """The template or the parser left the reasoning out."""
    TOOL_JSON = "tool_json"
    """A tool call was parsed and written again: the same JSON in other characters."""
    TEXT_DROPPED = "text_dropped"
    """A parser threw part of the text away."""
    EDITED_HISTORY = "edited_history"
    """A message the engine did not sample is another one now."""
    TRUNCATED = "truncated"
    """Messages are gone, or the prompt ends where the engine had already gone on."""
    UNKNOWN = "unknown"


REPLACEMENT = "\ufffd"
_THINKING = re.compile(r"<think>.*?</think>|\[THINK\].*?\[/THINK\]", re.DOTALL)
_THINKING_ENDS = ("</think>", "[/THINK]")
_TAGS = re.compile(r"</?think>|\[/?THINK\]")
_JSON = json.JSONDecoder()


def explain(known: str, rendered: str) -> DriftKind | None:
    """The kind of difference between a message as the engine had it and as it is rendered.

    Args:
        known: the text of the engine's tokens, one message with its header.
        rendered: the text of the rendering's tokens of the same message.

    Returns:
        None if the texts are the same; UNKNOWN if nothing known explains the difference.
    """
    if known == rendered:
        return None
    if _squash(known.replace(REPLACEMENT, "")) == _squash(rendered.replace(REPLACEMENT, "")):
        return DriftKind.INVALID_UTF8 if REPLACEMENT in known + rendered else DriftKind.WHITESPACE
    short, long = (canonical_json(text) for text in (rendered, known))
    if _squash(short) == _squash(long):
        return DriftKind.TOOL_JSON
    bare_short, bare_long = without_thinking(short), without_thinking(long)
    if _squash(bare_short) == _squash(bare_long) or _tagless(short) == _tagless(long):
        return DriftKind.THINKING_STRIPPED
    pairs = ((short, long), (bare_short, bare_long), (_tagless(short), _tagless(long)))
    if any(_one_piece_gone(_squash(a), _squash(b)) for a, b in pairs):
        return DriftKind.TEXT_DROPPED
    return DriftKind.UNKNOWN


def canonical_json(text: str) -> str:
    """The text with every JSON object in it written one way."""
    parts, at = [], 0
    while (start := text.find("{", at)) >= 0:
        try:
            value, stop = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            parts.append(text[at : start + 1])
            at = start + 1
            continue
        parts.append(text[at:start])
        parts.append(_written(value))
        at = stop
    return "".join(parts) + text[at:]


def without_thinking(text: str) -> str:
    """The text without its reasoning; also without one whose opening tag was in the prompt."""
    text = _THINKING.sub("", text)
    for tag in _THINKING_ENDS:
        head, found, rest = text.rpartition(tag)
        if found:  # the first line is the header; the reasoning began in the generation prompt
            text = head.split("\n", 1)[0] + "\n" + rest
    return text


def _written(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: _unquoted(item) for key, item in value.items()}
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _unquoted(value: Any) -> Any:
    """A JSON object that travels as a string, the way OpenAI's `arguments` do, as an object."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _squash(text: str) -> str:
    return "".join(text.split())


def _tagless(text: str) -> str:
    return _squash(_TAGS.sub("", text))


def _one_piece_gone(short: str, long: str) -> bool:
    """Whether `short` is `long` with one piece cut out of it."""
    if len(short) >= len(long):
        return False
    head = next((i for i, a in enumerate(short) if a != long[i]), len(short))
    return long.endswith(short[head:])
