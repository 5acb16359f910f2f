"""Rows that `rlbridge transform sft` and `dpo` make, in one form each. Imports no NeMo-RL.

Refuses rows of another form, and those that hold nothing to learn, with file, line and JSON path.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.rows import read_rows

Message = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What SFT learns from: every assistant's turn in it.

    Attributes:
        where: its place, `file:line`.
        messages: the last one is the assistant's.
        tools: what the prompt offers.
    """

    where: str
    messages: list[Message]
    tools: Tools


@dataclass(frozen=True, slots=True)
class Pair:
    """What DPO learns from: two answers to one prompt.

    Attributes:
        where: its place, `file:line`.
        chosen: the prompt's messages and the better answer.
        rejected: the same messages and the worse answer.
        tools: what the prompt offers.
    """

    where: str
    chosen: list[Message]
    rejected: list[Message]
    tools: Tools


def conversations(path: Path) -> Iterator[Conversation]:
    """Rows `{messages, tools?}` or `{input, output}`.

    Raises:
        ConfigError: the file can't be read, or a row is no conversation.
    """
    for where, row in read_rows(path):
        if "messages" in row:
            messages = _messages(row["messages"], where, "$.messages")
        elif {"input", "output"} <= set(row):
            messages = [
                _said("user", row, "input", where),
                _said("assistant", row, "output", where),
            ]
        else:
            raise _unknown("sft", "{messages, tools?} or {input, output}", where, row)
        _answered(messages, where, "$.messages")
        yield Conversation(where, messages, row.get("tools") or [])


def pairs(path: Path) -> Iterator[Pair]:
    """Rows `{prompt, chosen, rejected}`, in texts or messages, or `{context, completions}`.

    Raises:
        ConfigError: the file can't be read, a row is no pair, or an answer is more than one
            message: NeMo-RL's DPO learns the last message alone.
    """
    for where, row in read_rows(path):
        if {"prompt", "chosen", "rejected"} <= set(row):
            prompt = _turns(row["prompt"], "user", where, "$.prompt")
            answers = {name: (row[name], f"$.{name}") for name in ("chosen", "rejected")}
        elif {"context", "completions"} <= set(row):
            prompt = _messages(row["context"], where, "$.context")
            answers = _ranked(row["completions"], where)
        else:
            forms = "{prompt, chosen, rejected} or {context, completions}"
            raise _unknown("dpo", forms, where, row)
        chosen, rejected = (
            [*prompt, *_one_answer(_turns(answer, "assistant", where, at), where, at)]
            for answer, at in (answers["chosen"], answers["rejected"])
        )
        yield Pair(where, chosen, rejected, row.get("tools") or [])


def _ranked(completions: Any, where: str) -> dict[str, tuple[Any, str]]:
    at = "$.completions"
    if (
        not isinstance(completions, list)
        or len(completions) != 2
        or not all(
            isinstance(one, dict) and isinstance(one.get("rank"), int) for one in completions
        )
    ):
        raise ConfigError(f"{where}: {at} must be two objects {{rank, completion}}")
    if completions[0]["rank"] == completions[1]["rank"]:
        raise ConfigError(f"{where}: {at} have the same rank; the better one's must be lower")
    order = sorted(range(2), key=lambda index: completions[index]["rank"])
    return {
        name: (completions[index].get("completion"), f"{at}[{index}].completion")
        for name, index in zip(("chosen", "rejected"), order, strict=True)
    }


def _turns(value: Any, role: str, where: str, at: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _messages(value, where, at)


def _messages(value: Any, where: str, at: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: {at} must be a list of messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ConfigError(f"{where}: {at}[{index}] is no message with a role")
    return value


def _one_answer(messages: list[Message], where: str, at: str) -> list[Message]:
    if len(messages) > 1:
        raise ConfigError(
            f"{where}: {at} has {len(messages)} messages, and NeMo-RL's DPO learns the last one "
            "alone; `rlbridge transform dpo` without --format leaves such rollouts out"
        )
    _answered(messages, where, at)
    return messages


def _answered(messages: list[Message], where: str, at: str) -> None:
    last = messages[-1]
    if last["role"] != "assistant":
        raise ConfigError(f"{where}: {at} ends with the {last['role']}'s words, not an answer")
    content = last.get("content")
    said = content.strip() if isinstance(content, str) else content
    if not said and not last.get("tool_calls"):
        raise ConfigError(f"{where}: {at} ends with an empty answer")


def _said(role: str, row: Mapping[str, Any], key: str, where: str) -> Message:
    if not isinstance(row[key], str):
        raise ConfigError(f"{where}: $.{key} must be text, not {type(row[key]).__name__}")
    return {"role": role, "content": row[key]}


def _unknown(name: str, forms: str, where: str, row: Mapping[str, Any]) -> ConfigError:
    return ConfigError(
        f"{where}: a row for {name} is {forms}, this one has {orjson.dumps(sorted(row)).decode()}; "
        f"make rows with `rlbridge transform {name}`"
    )
