"""How models write tool calls: one reader a format. What is no call is refused with a reason.

A reader starts at a marker and returns the calls it read. The formats are those of the chat
templates of Qwen and Hermes, Qwen3-Coder, GLM-4.5, Llama 3, Mistral, DeepSeek V3 and V3.1,
Kimi K2, and the Python calls of Llama 3.2 and 4.
"""

import ast
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlbridge.parsing.cursor import (
    Cursor,
    Malformed,
    json_elements,
    json_members,
    load_json,
)
from rlbridge.parsing.message import ToolCall

Schemas = Mapping[str, Mapping[str, Any]]
Reader = Callable[[Cursor, Schemas], tuple[ToolCall, ...]]

_ARGUMENTS = ("arguments", "parameters")
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


def call_of(source: str, *, call_id: str = "") -> ToolCall:
    """The call in a JSON object with a name and arguments, which stay as written."""
    value = load_json(source)
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        raise Malformed("its JSON has no name")
    key = next((key for key in _ARGUMENTS if key in value), None)
    if key is None:
        raise Malformed("its JSON has no arguments")
    if isinstance(value[key], str):  # JSON inside JSON: what the model meant is the inner one
        return ToolCall(name, _object_source(value[key]), call_id)
    return ToolCall(name, _object_source(json_members(source)[key]), call_id)


def _object_source(source: str) -> str:
    if not isinstance(load_json(source), dict):
        raise Malformed("its arguments are no JSON object")
    return source


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
    return (ToolCall(name, _typed(texts, schemas.get(name, {}))),)


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
            return (ToolCall(name, _typed(texts, schemas.get(name, {}))),)


def _typed(texts: Mapping[str, str], properties: Mapping[str, Any]) -> str:
    """A JSON object of values written without quotes: only their schemas tell 5 from "5"."""
    values: dict[str, Any] = {}
    for key, text in texts.items():
        schema = properties.get(key)
        values[key] = text
        if isinstance(schema, Mapping) and not _is_text(schema):
            try:
                values[key] = load_json(text)
            except Malformed:
                continue
    return json.dumps(values, ensure_ascii=False)


def _is_text(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") in ("string", ["string"]) or (
        "type" not in schema and all(isinstance(value, str) for value in schema.get("enum", ("",)))
        and "anyOf" not in schema and "oneOf" not in schema
    )  # fmt: skip


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
    if cursor.word(r"\w") not in {"name", "type", "function", "id", *_ARGUMENTS}:
        raise Malformed("")
    cursor.at = at


def _mistral(cursor: Cursor, _: Schemas) -> tuple[ToolCall, ...]:
    cursor.expect("[TOOL_CALLS]", "no mark")
    cursor.skip_space()
    if cursor.peek() == "[":
        source = cursor.json_source("[")
        load_json(source)
        calls = tuple(_with_id(element) for element in json_elements(source))
        if not calls:
            raise Malformed("its list is empty")
        return calls
    if cursor.peek() == "{":
        return (_with_id(cursor.json_source()),)
    name = cursor.word(_NAME)
    if not name:
        raise Malformed("neither a name nor JSON follows")
    call_id = cursor.word(r"\w") if cursor.starts("[CALL_ID]") else ""
    cursor.starts("[ARGS]")
    cursor.skip_space()
    return (ToolCall(name, _read_object(cursor), call_id),)


def _with_id(source: str) -> ToolCall:
    value = load_json(source)
    written = value.get("id") if isinstance(value, dict) else None
    return call_of(source, call_id=written if isinstance(written, str) else "")


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
    calls = _python_calls(cursor.python_source())
    if tagged:
        cursor.skip_space()
        cursor.close("<|python_end|>", "the list is not followed by <|python_end|>")
    return calls


def _python_calls(source: str) -> tuple[ToolCall, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a string is none of ours
            tree = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Malformed("its Python can't be read") from None
    if not isinstance(tree, ast.List):
        raise Malformed("it is no list")
    return tuple(_python_call(node) for node in tree.elts)


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise Malformed("an element is no call with named arguments")
    values: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise Malformed("an element is no call with named arguments")
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
            json.dumps(values[keyword.arg], allow_nan=False)
        except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError):
            raise Malformed(f"argument {keyword.arg!r} is no plain value") from None
    return ToolCall(ast.unparse(node.func), json.dumps(values, ensure_ascii=False))


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
