"""Reads dataset rows in Gym's JSON lines: a row's chat prompt, tools and agent. Refuses what isn't.

A row is `{responses_create_params: {input, ...}, <the verifier's fields>, agent_ref?}`; it stays
plain data, since each verifier has fields of its own. A row of raw fields becomes one by a prompt
config, here and nowhere else on the way to a trainer.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError

# What NeMo Gym's own model server passes on; `strict` it leaves out.
_FUNCTION_KEYS = ("name", "description", "parameters")
_BOM = b"\xef\xbb\xbf"
# JSON has integers of any size; on the wire, and in most servers, they end at 64 bits.
_LONG_NUMBER = re.compile(rb"(?<![\d.])\d{19}")  # not behind a point: logprobs are long
_INTEGERS = range(-(1 << 63), 1 << 64)

Row = dict[str, Any]


class Prompt(Protocol):
    """Makes a row's prompt of its raw fields; `rlbridge.prompts.PromptConfig` does."""

    def apply(self, row: Mapping[str, Any], *, where: str) -> Row:
        """The row with its prompt, and all else as it was."""
        ...


def read_rows(
    path: Path, limit: int | None = None, prompt: Prompt | None = None
) -> list[tuple[str, Row]]:
    """Rows of a JSON-lines file, each with its place (`file:line`) for messages.

    Args:
        path: the file.
        limit: read so many rows at most.
        prompt: applied to each row, once; None for rows that have their prompts.

    Raises:
        ConfigError: the file can't be read, holds no rows, a line is no JSON object or holds a
            number that wouldn't reach the verifier as it is, or the prompt refuses a row.
    """
    rows = []
    try:
        lines = path.read_bytes().removeprefix(_BOM).splitlines()
    except OSError as error:
        raise ConfigError(f"can't read the rows {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
        refuse_rounded(line, where)
        rows.append((where, row))
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise ConfigError(f"{path} holds no rows")
    return prompted(rows, prompt)


def prompted(rows: list[tuple[str, Row]], prompt: Prompt | None) -> list[tuple[str, Row]]:
    """Rows with their places, each given its prompt; as they are if `prompt` is None.

    Raises:
        ConfigError: a row has a prompt already, or lacks a field; with its place.
    """
    if prompt is None:
        return rows
    return [(where, prompt.apply(row, where=where)) for where, row in rows]


def refuse_rounded(line: bytes, where: str) -> None:
    """Refuse a row that wouldn't reach a verifier as it stands in its file.

    Args:
        line: the row's JSON.
        where: its place, for the message.

    Raises:
        ConfigError: it holds an integer beyond 64 bits; names its path.
    """
    if _LONG_NUMBER.search(line) is None:
        return
    for path, number in _integers(json.loads(line), "$"):
        if number not in _INTEGERS:
            raise ConfigError(
                f"{where}: {path} is an integer beyond 64 bits, which would be rounded on its way "
                "to the verifier; write it as text"
            )


def _integers(value: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _integers(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _integers(item, f"{path}[{index}]")
    elif isinstance(value, int):
        yield path, value


def messages_of(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The chat messages of a row's prompt (`responses_create_params.input`).

    Raises:
        ConfigError: the row has no prompt, or an item of it is no message with text.
    """
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    given = params.get("input") if isinstance(params, Mapping) else None
    if not given:
        raise ConfigError(
            f"{where}: $.responses_create_params.input is missing or empty; rows of raw fields "
            "need a prompt config (`prompt`)"
        )
    system = params.get("instructions") if isinstance(params, Mapping) else None
    at = f"{where}: $.responses_create_params"
    if system is not None and not isinstance(system, str):
        raise ConfigError(f"{at}.instructions must be text, not {type(system).__name__}")
    head = [{"role": "system", "content": system}] if system else []
    if isinstance(given, str):
        return [*head, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise ConfigError(f"{at}.input must be text or a list of messages")
    return [*head, *(_message(item, f"{at}.input[{i}]") for i, item in enumerate(given))]


def tools_of(row: Mapping[str, Any], where: str = "a row") -> list[dict[str, Any]]:
    """The functions a row offers (`responses_create_params.tools`), in Chat form.

    Raises:
        ConfigError: a tool is no object, or a function without a name.
    """
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    given = (params.get("tools") if isinstance(params, Mapping) else None) or []
    at = f"{where}: $.responses_create_params.tools"
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise ConfigError(f"{at} must be a list of objects")
    found = []
    for index, tool in enumerate(given):
        if tool.get("type") != "function":
            continue
        if not isinstance(tool.get("name"), str):
            raise ConfigError(f"{at}[{index}].name is missing; a function has a name")
        kept = {key: tool[key] for key in _FUNCTION_KEYS if tool.get(key) is not None}
        found.append({"type": "function", "function": kept})
    return found


def agent_of(row: Mapping[str, Any], where: str) -> str | None:
    """The agent a row is for (`agent_ref.name`), or None if it names none.

    Raises:
        ConfigError: it isn't told in this form, and a row would go to a server it isn't for.
    """
    ref = row.get(wire.AGENT_REF)
    name = ref.get("name") if isinstance(ref, Mapping) else ref
    if name is None or (isinstance(name, str) and isinstance(ref, Mapping)):
        return name or None
    raise ConfigError(f'{where}: $.agent_ref must be an object with a name, {{"name": "math"}} say')


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, Mapping) or item.get("type", "message") != "message":
        raise ConfigError(f"{where} is no message; tool items need a multi-turn agent loop")
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or not role:
        raise ConfigError(f"{where}.role is missing")
    if isinstance(content, list):
        content = "".join(_text(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise ConfigError(f"{where}.content must be text or a list of text parts")
    # Responses' "developer" is what chat templates call "system".
    return {"role": "system" if role == "developer" else role, "content": content}


def _text(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise ConfigError(f"{where} ({kind}) is no text, and policies are given text alone")
    return text
