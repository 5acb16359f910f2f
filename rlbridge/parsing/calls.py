"""Tool calls from the text of one: a JSON object, arguments without quotes, or Python.

Raises `Malformed` with the reason where that text is no call.
"""

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from rlbridge.parsing.cursor import Malformed, json_members, load_json
from rlbridge.parsing.message import ToolCall

Schemas = Mapping[str, Mapping[str, Any]]
"""JSON schemas of parameters, by tool and parameter."""

ARGUMENTS = ("arguments", "parameters")
"""Keys that JSON calls have their arguments under."""


def call_of(source: str, *, call_id: str = "") -> ToolCall:
    """The call in a JSON object with a name and arguments, which stay as written."""
    value = load_json(source)
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        raise Malformed("its JSON has no name")
    key = next((key for key in ARGUMENTS if key in value), None)
    if key is None:
        raise Malformed("its JSON has no arguments")
    if isinstance(value[key], str):  # JSON inside JSON: what the model meant is the inner one
        return ToolCall(name, _object_source(value[key]), call_id)
    return ToolCall(name, _object_source(json_members(source)[key]), call_id)


def call_with_id(source: str) -> ToolCall:
    """As `call_of`, with the ID that is in the object."""
    value = load_json(source)
    written = value.get("id") if isinstance(value, dict) else None
    return call_of(source, call_id=written if isinstance(written, str) else "")


def _object_source(source: str) -> str:
    if not isinstance(load_json(source), dict):
        raise Malformed("its arguments are no JSON object")
    return source


def typed_call(name: str, texts: Mapping[str, str], schemas: Schemas) -> ToolCall:
    """The call of arguments written without quotes: only their schemas tell 5 from "5"."""
    properties = schemas.get(name, {})
    values: dict[str, Any] = {}
    for key, text in texts.items():
        schema = properties.get(key)
        values[key] = text
        if isinstance(schema, Mapping) and not _is_text(schema):
            try:
                values[key] = load_json(text)
            except Malformed:
                continue
    return ToolCall(name, json.dumps(values, ensure_ascii=False))


def _is_text(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") in ("string", ["string"]) or (
        "type" not in schema and all(isinstance(value, str) for value in schema.get("enum", ("",)))
        and "anyOf" not in schema and "oneOf" not in schema
    )  # fmt: skip


def python_calls(source: str) -> tuple[ToolCall, ...]:
    """The calls in a list of Python calls with named arguments."""
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
