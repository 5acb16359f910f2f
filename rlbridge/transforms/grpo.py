"""Rollout rows to GRPO prompts. Refuses a row without ground truth where the format needs one.

GRPO samples anew, so what counts is the prompt and what verifies an answer: one row a prompt
unless asked otherwise. The rollout's own answer stays as `output`, for reference only. Formats:

- `simple`: `{input, output, ground_truth}`, for NeMo-RL's `ResponseDataset` with
  `output_key: ground_truth` (with `output`, its math environment would verify against the
  policy's own earlier answer);
- `gym`: dataset rows as a Gym agent's `/run` takes them, for training online;
- `verl`: `data_source, prompt, ability, reward_model, extra_info` and the Gym row.
"""

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from rlbridge.contracts import wire
from rlbridge.transforms.conversation import Prompts, conversation_of, missing, prompt_of
from rlbridge.transforms.fields import read_fields
from rlbridge.transforms.harvest import Convert
from rlbridge.transforms.messages import Style
from rlbridge.transforms.pipeline import Job
from rlbridge.transforms.reading import Row
from rlbridge.transforms.rejects import BadRowError
from rlbridge.transforms.selection import Selection
from rlbridge.transforms.spool import Piece
from rlbridge.transforms.texts import completion_text, prompt_text

Format = Literal["simple", "gym", "verl"]

# What verifiers of Gym's environments call the right answer, the likeliest first; see `fields`.
GROUND_TRUTHS: Final = ("ground_truth", "expected_answer", "answer", "label", "target")

_OF_ROLLOUT: Final = frozenset(
    {wire.RESPONSE, "output", wire.REWARD, wire.REWARD_COMPONENTS, wire.MASK_SAMPLE,
     wire.VERIFY_RESPONSES}
)  # fmt: skip
_LINE: Final = orjson.OPT_APPEND_NEWLINE


def job(
    inputs: tuple[Path, ...],
    output: Path,
    selection: Selection,
    *,
    format: Format = "simple",  # noqa: A002 # the option's name
    ground_truth: str | None = None,
    style: Style | None = None,
    **more: Any,
) -> Job:
    """The job that makes GRPO data; `more` are `Job`'s other attributes."""
    style = style or Style(reasoning="think")
    convert: Convert
    if format == "gym":
        convert = _gym
    elif format == "verl":
        convert = _verl(ground_truth)
    else:
        convert = partial(_simple, ground_truth, Prompts(style))
    options = {"format": format, "ground_truth": ground_truth}
    usual = format == "simple" and ground_truth is None
    return Job(
        "grpo", inputs, output, convert, selection,
        needs_reward=format == "simple", numbers_rows=format == "verl", options=options,
        load=read_fields if usual else orjson.loads,
        schema=verl_schema() if format == "verl" and output.suffix == ".parquet" else None, **more,
    )  # fmt: skip


def verl_schema() -> Any:
    """The Parquet schema of the `verl` format (verl 0.9.1's `RLHFDataset`)."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(message)),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct([("index", pa.int64())])),
            ("gym_row", pa.string()),
        ]
    )


def dataset_row(row: Row) -> Row:
    """The row as it was before the rollout: no response, no reward, no token fields, no indices."""
    kept = {
        key: value
        for key, value in row.items()
        if key not in _OF_ROLLOUT and not key.startswith("_ng_")
    }
    params = kept.get(wire.RESPONSES_CREATE_PARAMS)
    if isinstance(params, dict):
        params = {key: value for key, value in params.items() if value is not None}
        given = params.get("input")
        if isinstance(given, list):
            params["input"] = [
                {k: v for k, v in item.items() if k not in wire.TOKEN_FIELDS}
                if isinstance(item, dict) and not item.keys().isdisjoint(wire.TOKEN_FIELDS)
                else item
                for item in given
            ]
        kept[wire.RESPONSES_CREATE_PARAMS] = params
    return kept


def truth_of(row: Row, name: str | None) -> str:
    """The row's ground truth as text; anything but text as JSON.

    Args:
        row: the row.
        name: the field, `a.b` for one inside another; None looks for the usual names.

    Raises:
        BadRowError: it isn't there.
    """
    value: Any = None
    if name is None:
        for key in GROUND_TRUTHS:
            value = row.get(key)
            if value is not None:
                break
    else:
        value = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        field = name or "expected_answer"
        why = (
            f"$.{field} is missing and `transform grpo` needs a ground truth: name its field with "
            "--ground-truth, or take --format gym, which leaves verifying to the environment"
        )
        raise missing(row, field, why)
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _simple(ground_truth: str | None, prompts: Prompts, row: Row) -> Piece:
    said = conversation_of(row, prompts)
    prompt = said.prompt
    record = {
        "input": prompt_text(prompt.messages),
        "output": completion_text(said.completion),
        "ground_truth": truth_of(row, ground_truth),
    }
    return prompt.written, orjson.dumps(record, option=_LINE), prompt.plain


def _gym(row: Row) -> Piece:
    prompt = orjson.dumps(prompt_of(row, _PROMPT_STYLE))
    return prompt, orjson.dumps(dataset_row(row), option=_LINE), False


def _verl(ground_truth: str | None) -> Convert:
    index = count()

    def convert(row: Row) -> Piece:
        prompt = prompt_of(row, _PROMPT_STYLE)
        messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
        try:
            truth = truth_of(row, ground_truth)
        except BadRowError:
            if ground_truth is not None:
                raise
            truth = None  # verl's own scorers fail on it; the Gym's reward doesn't need it
        agent = row.get(wire.AGENT_REF)
        name = agent.get("name", "nemo_gym") if isinstance(agent, dict) else "nemo_gym"
        record = {
            "data_source": str(name),
            "prompt": messages,
            "ability": "",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": next(index)},
            "gym_row": orjson.dumps(dataset_row(row)).decode(),
        }
        return orjson.dumps(prompt), orjson.dumps(record, option=_LINE), False

    return convert


_PROMPT_STYLE = Style(reasoning="think", arguments="string")
