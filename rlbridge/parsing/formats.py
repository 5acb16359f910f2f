"""How models write tool calls: one reader a format. What is no call is refused with a reason.

A reader starts at a marker and returns the calls it read. The formats are those of the chat
templates of Qwen and Hermes, Qwen3-Coder, GLM-4.5, Llama 3, Mistral, DeepSeek V3 and V3.1,
Kimi K2, and the Python calls of Llama 3.2 and 4.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rlbridge.parsing.calls import (
    ARGUMENTS,
    Schemas,
    call_of,
    call_with_id,
    python_calls,
    typed_call,
)
from rlbridge.parsing.cursor import Cursor, Malformed, json_elements, load_json
from rlbridge.parsing.message import ToolCall

Reader = Callable[[Cursor, Schemas], tuple[ToolCall, ...]]

_NAME = r"\w.\-/:"


@dataclass(frozen=True)
class Format:
    """A way to write tool calls.

    Attributes:
        openers: marks that begin calls anywhere in the content.
        first: marks that begin calls only where no content came before.
        glue: marks around calls that mean nothing themselves.
        read: reads the calls at a mark; raises `NeedMore` or `Malformed`.
    """

    openers: tuple[str, ...]
    read: Reader
    first: tuple[str, ...] = ()
    glue: tuple[str, ...] = ()


def _hermes(cursor: Cursor, _: Schemas) -> tuple[ToolCall, ...]:
    cursor.expect("<tool_call>", "no mark")
    cursor.skip_space()
    call = call_of(cursor.json_source())
    cursor.skip_space()
    cursor.close("</tool_call>", "its JSON is not followed by </tool_call>")
    return (call,)


def _qwen_xml(cursor: Cursor, schemas: Schemas) -> tuple[ToolCall, ...]:
    wrapped = cursor.starts("<tool_call>")
    cursor.skip_space()
    cursor.expect("<function=", "no <function=...> follows")
    name = cursor.until(">", "the function's name is not closed", limit=256).strip()
    if not name:
        raise Malformed("the function has no name")
    texts: dict[str, str] = {}
    while True:
        cursor.skip_space()
        if cursor.starts("<parameter="):
            key = cursor.until(">", "a parameter's name is not closed", limit=256).strip()
            texts[key] = _inner(cursor.until("</parameter>", f"parameter {key!r} is not closed"))
        else:
            cursor.close("</function>", "neither a parameter nor </function> follows")
            break
    if wrapped:
        cursor.skip_space()
        cursor.close("</tool_call>", "</function> is not followed by </tool_call>")
    return (typed_call(name, texts, schemas),)


def _inner(text: str) -> str:
    """A parameter's text without the one newline on each side that the template writes."""
    return text.removeprefix("\n").removesuffix("\n")


def _glm(cursor: Cursor, schemas: Schemas) -> tuple[ToolCall, ...]:
    cursor.expect("<tool_call>", "no mark")
    cursor.skip_space()
    name = cursor.word(_NAME)
    if not name:
        raise Malformed("the function has no name")
    texts: dict[str, str] = {}
    while True:
        cursor.skip_space()
        if cursor.starts("<arg_key>"):
            key = cursor.until("</arg_key>", "an <arg_key> is not closed", limit=256).strip()
            cursor.skip_space()
            cursor.expect("<arg_value>", f"no <arg_value> for {key!r}")
            texts[key] = cursor.until("</arg_value>", f"the value of {key!r} is not closed")
        else:
            cursor.close("</tool_call>", "neither <arg_key> nor </tool_call> follows")
            return (typed_call(name, texts, schemas),)


def _llama(cursor: Cursor, _: Schemas) -> tuple[ToolCall, ...]:
    tagged = cursor.starts("<|python_tag|>")
    cursor.skip_space()
    if not tagged:
        _refuse_other_json(cursor)
    calls = [_bare_call(cursor, tagged=tagged)]
    while True:
        end = cursor.at
        cursor.skip_space()
        if cursor.ended() or not cursor.starts(";"):
            cursor.at = end
            return tuple(calls)
        cursor.skip_space()
        try:
            calls.append(_bare_call(cursor, tagged=True))
        except Malformed:
            cursor.at = end
            return tuple(calls)


def _bare_call(cursor: Cursor, *, tagged: bool) -> ToolCall:
    try:
        return call_of(cursor.json_source())
    except Malformed:
        if tagged:
            raise
        raise Malformed("") from None  # an answer in JSON


def _refuse_other_json(cursor: Cursor) -> None:
    """Let an answer in JSON go by at once, where its first key is none of a call's."""
    at = cursor.at
    cursor.expect("{", "")
    cursor.skip_space()
    cursor.expect('"', "")
    if cursor.word(r"\w") not in {"name", "type", "function", "id", *ARGUMENTS}:
        raise Malformed("")
    cursor.at = at


def _mistral(cursor: Cursor, _: Schemas) -> tuple[ToolCall, ...]:
    cursor.expect("[TOOL_CALLS]", "no mark")
    cursor.skip_space()
    if cursor.peek() == "[":
        source = cursor.json_source("[")
        load_json(source)
        calls = tuple(call_with_id(element) for element in json_elements(source))
        if not calls:
            raise Malformed("its list is empty")
        return calls
    if cursor.peek() == "{":
        return (call_with_id(cursor.json_source()),)
    name = cursor.word(_NAME)
    if not name:
        raise Malformed("neither a name nor JSON follows")
    call_id = cursor.word(r"\w") if cursor.starts("[CALL_ID]") else ""
    cursor.starts("[ARGS]")
    cursor.skip_space()
    return (ToolCall(name, _read_object(cursor), call_id),)


def _read_object(cursor: Cursor) -> str:
    source = cursor.json_source()
    load_json(source)
    return source


def _deepseek(cursor: Cursor, _: Schemas) -> tuple[ToolCall, ...]:
    cursor.expect("<｜tool▁call▁begin｜>", "no mark")
    name = cursor.until("<｜tool▁sep｜>", "no <｜tool▁sep｜> follows", limit=256).strip()
    fenced = cursor.peek() != "{"  # V3 and R1 write `function`, then the name, then a fence
    if fenced:
        name = cursor.until("```json", "no ```json follows the name", limit=256).strip()
        cursor.skip_space()
    if not name:
        raise Malformed("the function has no name")
    arguments = _read_object(cursor)
    cursor.skip_space()
    if fenced:
        cursor.close("```", "the fence is not closed")
        cursor.skip_space()
    cursor.close("<｜tool▁call▁end｜>", "its JSON is not followed by <｜tool▁call▁end｜>")
    return (ToolCall(name, arguments),)


def _kimi(cursor: Cursor, _: Schemas) -> tuple[ToolCall, ...]:
    cursor.expect("<|tool_call_begin|>", "no mark")
    mark = "<|tool_call_argument_begin|>"
    written = cursor.until(mark, f"no {mark} follows", limit=256).strip()
    name = written.removeprefix("functions.").rpartition(":")[0]
    if not name:
        raise Malformed(f"{written!r} is no `functions.name:index`")
    cursor.skip_space()
    arguments = _read_object(cursor)
    cursor.skip_space()
    cursor.close("<|tool_call_end|>", "its JSON is not followed by <|tool_call_end|>")
    return (ToolCall(name, arguments, written),)


def _pythonic(cursor: Cursor, _: Schemas) -> tuple[ToolCall, ...]:
    tagged = cursor.starts("<|python_start|>")
    cursor.skip_space()
    start = cursor.at
    cursor.expect("[", "no list of calls follows" if tagged else "")
    cursor.skip_space()
    if not cursor.word(r"\w.") or not cursor.starts("("):
        raise Malformed("no list of calls follows" if tagged else "")
    cursor.at = start
    calls = python_calls(cursor.python_source())
    if tagged:
        cursor.skip_space()
        cursor.close("<|python_end|>", "the list is not followed by <|python_end|>")
    return calls


HERMES = Format(("<tool_call>",), _hermes)
QWEN_XML = Format(("<tool_call>", "<function="), _qwen_xml)
GLM = Format(("<tool_call>",), _glm)
LLAMA = Format(("<|python_tag|>",), _llama, first=("{",))
MISTRAL = Format(("[TOOL_CALLS]",), _mistral)
DEEPSEEK = Format(
    ("<｜tool▁call▁begin｜>",),
    _deepseek,
    glue=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
KIMI = Format(
    ("<|tool_call_begin|>",),
    _kimi,
    glue=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
)
PYTHONIC = Format(("<|python_start|>",), _pythonic, first=("[",))
