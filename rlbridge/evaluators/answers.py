r"""The answer in a response: its text, the last box in it, the last fenced block. Pure, linear.

Whatever a policy writes has to go through here, so every function is linear in the text and
takes the last of several: a policy that boxes five guesses has answered the fifth.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rlbridge.contracts.wire import RESPONSES_CREATE_PARAMS
from rlbridge.errors import ContractError

_BOX: Final = re.compile(r"\\f?boxed\s*\{")
_BRACE: Final = re.compile(r"\\.|[{}]", re.DOTALL)
_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*$", re.MULTILINE)


def answer_text(response: object) -> str:
    """The text of the last message the policy wrote; empty if it wrote none.

    Args:
        response: text, a list of chat messages or Responses items, one of them, a chat
            completion or a Responses object; as plain data or as OpenAI's own types.

    Raises:
        ContractError: it is nothing of the kind.
    """
    if isinstance(response, str):
        return response
    entry = _plain(response)
    if isinstance(entry, Mapping):
        choices = entry.get("choices")
        if isinstance(choices, Sequence) and choices and isinstance(choices[0], Mapping):
            return answer_text([choices[0].get("message")])
        if "output" in entry and "role" not in entry and entry.get("type") is None:
            return answer_text(entry["output"])
        return answer_text([entry])
    if not isinstance(entry, Sequence) or isinstance(entry, bytes | bytearray):
        raise ContractError(
            "a response is text, chat messages, Responses items or a Responses object, "
            f"got {type(response).__name__}"
        )
    for item in reversed(entry):
        message = _plain(item)
        if not isinstance(message, Mapping):
            raise ContractError(f"a response's items are dicts, got {type(item).__name__}")
        if message.get("role") == "assistant":
            return _text(message.get("content"))
    return ""


def question_of(row: Mapping[str, Any]) -> str:
    """The text of the last user message of a row's prompt; empty if there is none."""
    params = row.get(RESPONSES_CREATE_PARAMS)
    given = params.get("input") if isinstance(params, Mapping) else None
    if isinstance(given, str):
        return given
    for item in reversed(given if isinstance(given, list) else []):
        if isinstance(item, Mapping) and item.get("role") == "user":
            return _text(item.get("content"))
    return ""


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, braces balanced; None if there is none that closes.

    A last box that doesn't close was cut off: the boxes before it were not the answer.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fboxed"))
    box = _BOX.match(text, start) if start >= 0 else None
    if box is None:
        return None
    depth = 1
    for brace in _BRACE.finditer(text, box.end()):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return text[box.end() : brace.start()]
    return None


def balanced(text: str) -> bool:
    """Whether every brace in `text` has its fellow; escaped ones don't count."""
    depth = 0
    for brace in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return False
    return depth == 0


def has_box(text: str) -> bool:
    """Whether there is a box at all, closed or not."""
    return "\\boxed" in text


def last_fenced(text: str, languages: Sequence[str] = ()) -> str | None:
    """The last closed fenced block, of one of `languages` if any such is there.

    Args:
        text: Markdown.
        languages: info strings that are preferred, in lower case.
    """
    chosen, preferred = None, None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2]:
            block = text[opening.end() + 1 : fence.start()]
            chosen = block
            if opening[2].lower() in languages:
                preferred = block
            opening = None
    return chosen if preferred is None else preferred


def after_last(text: str, mark: str | None) -> str:
    """What follows the last `mark`; nothing if it is missing, all if there is no mark."""
    if not mark:
        return text
    _, found, rest = text.rpartition(mark)
    return rest if found else ""


def _plain(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json", exclude_unset=True)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text", "") for part in parts if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))
