"""Rollout rows to SFT conversations, the prompt included. Refuses nothing that has a chat form.

Formats:

- `openai`: `{messages, tools?}`, for NeMo-RL's `openai_format`, TRL and (as Parquet) verl; tool
  calls, results and reasoning are as the model's template wants them (`Style`);
- `simple`: `{input, output}`, for NeMo-RL's `ResponseDataset`; single answers without tools only.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

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
    prompt = said.prompt.written
    more = b',"tools":' + orjson.dumps(said.tools) if said.tools else b""
    # The two lists of messages in one; the prompt's text is there already.
    line = (b'{"messages":', prompt[:-1], b",", orjson.dumps(messages)[1:], more, b"}\n")
    return Piece(prompt, b"".join(line))


def _simple(prompts: Prompts, row: Row) -> Piece:
    said = conversation_of(row, prompts)
    asked = said.prompt.text or orjson.dumps(prompt_text(said.prompt.messages))
    answer = orjson.dumps(single_answer(said.completion))
    line = (b'{"input":', asked, b',"output":', answer, b"}\n")
    return Piece(said.prompt.written, b"".join(line))
