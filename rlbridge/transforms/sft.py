"""Rollout rows to SFT conversations, the prompt included. Refuses nothing that has a chat form.

Formats:

- `openai`: `{messages, tools?}`, for NeMo-RL's `openai_format`, TRL and (as Parquet) verl; tool
  calls, results and reasoning are as the model's template wants them (`Style`);
- `simple`: `{input, output}`, for NeMo-RL's `ResponseDataset`; single answers without tools only.
"""

from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from rlbridge.transforms.conversation import Prompts, conversation_of
from rlbridge.transforms.harvest import SkippedRowError
from rlbridge.transforms.messages import Style
from rlbridge.transforms.pipeline import Job
from rlbridge.transforms.reading import Row
from rlbridge.transforms.selection import Selection
from rlbridge.transforms.spool import Piece
from rlbridge.transforms.texts import prompt_text, says_something, single_answer

Format = Literal["openai", "simple"]

_LINE: Final = orjson.OPT_APPEND_NEWLINE


def job(
    inputs: tuple[Path, ...],
    output: Path,
    selection: Selection,
    *,
    format: Format = "openai",  # noqa: A002 # the option's name
    style: Style | None = None,
    **more: Any,
) -> Job:
    """The job that makes SFT data; `more` are `Job`'s other attributes."""
    style = style or Style(reasoning="field" if format == "openai" else "think")
    convert = partial(_openai if format == "openai" else _simple, Prompts(style))
    options = {
        "format": format,
        "reasoning": style.reasoning,
        "reasoning_field": style.reasoning_field,
        "arguments": style.arguments,
    }
    return Job("sft", inputs, output, convert, selection, options=options, **more)


def _openai(prompts: Prompts, row: Row) -> Piece:
    said = conversation_of(row, prompts)
    messages = said.completion
    if not says_something(messages):
        raise SkippedRowError("with an empty answer")
    while messages[-1]["role"] != "assistant":  # the environment had the last word
        messages.pop()
    record = {"messages": said.prompt.messages + messages}
    if said.tools:
        record["tools"] = said.tools
    return said.prompt.written, orjson.dumps(record, option=_LINE), said.prompt.plain


def _simple(prompts: Prompts, row: Row) -> Piece:
    said = conversation_of(row, prompts)
    asked, answer = prompt_text(said.prompt.messages), single_answer(said.completion)
    line = orjson.dumps({"input": asked, "output": answer}, option=_LINE)
    return said.prompt.written, line, said.prompt.plain
