"""Reads dataset rows in Gym's JSON lines, and the chat prompt of a row. Refuses what isn't one.

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
_LONG_NUMBER = re.compile(rb"\d{19}")
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
        _refuse_rounded(line, where)
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


def _refuse_rounded(line: bytes, where: str) -> None:
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
    head = [{"role": "system", "content": system}] if system else []
    if isinstance(given, str):
        return [*head, {"role": "user", "content": given}]
    return [
        *head,
        *(
            _message(item, f"{where}: $.responses_create_params.input[{i}]")
            for i, item in enumerate(given)
        ),
    ]


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The functions a row offers (`responses_create_params.tools`), in Chat form."""
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    given = (params.get("tools") if isinstance(params, Mapping) else None) or []
    return [
        {
            "type": "function",
            "function": {key: tool[key] for key in _FUNCTION_KEYS if tool.get(key) is not None},
        }
        for tool in given
        if tool.get("type") == "function"
    ]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, Mapping) or item.get("type", "message") != "message":
        raise ConfigError(f"{where} is no message; tool items need a multi-turn agent loop")
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise ConfigError(f"{where}.content must be text or a list of text parts")
    role = item.get("role")
    # Responses' "developer" is what chat templates call "system".
    return {"role": "system" if role == "developer" else role, "content": content}
