"""A row of any shape is converted, has nothing to convert, or is refused with a reason."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import TOOL, Row, answered, called, row, said, thought

from rlbridge.contracts import wire
from rlbridge.transforms import dpo, grpo, sft
from rlbridge.transforms.fields import Fields, read_fields
from rlbridge.transforms.harvest import Convert, SkippedRowError
from rlbridge.transforms.pairs import Pairing
from rlbridge.transforms.pipeline import transform
from rlbridge.transforms.reading import Reader
from rlbridge.transforms.rejects import BadRowError, Rejects
from rlbridge.transforms.selection import Selection

HISTORY = [{"role": "assistant", "content": "b", "tool_calls": [{"function": {"name": "f"}}]}]
CHAT = {"choices": [{"message": {"role": "assistant", "content": "A"}}]}
ROWS = [
    row("Q?", [thought("hm"), called(), answered(), said("A")], expected_answer="A"),
    row([{"role": "system", "content": "s"}, *HISTORY, said("x")], "A", ground_truth=3)
    | {"agent_ref": {"name": "agent"}},
    row("Q?", "A") | {"response": CHAT},
    row("Q?", [{"role": "user", "content": "opening"}, said("A")]),
    row("Q?", [[said("a")], [said("a"), answered(), said("b")]]),
]
ROWS[0]["responses_create_params"]["tools"] = [TOOL]
PARTS = [{"type": "output_text", "text": ["a"]}, {"type": "input_image", "image_url": "u"}]
ODD = [None, 1, True, 2.5, "", "text", [], [1], [None], [[]], [{}], {}, {"a": 1}, PARTS, PARTS[1:]]
NAMES = ["role", "type", "content", "tool_calls", "reasoning", "summary", "choices", "instructions"]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each part of a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*at, key))


@st.composite
def odd_rows(draw: st.DrawFn) -> Row:
    """A row with a part or two replaced, removed or added."""
    made = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from([path for path in places(made) if path]))
        owner: Any = made
        for key in way:
            owner = owner[key]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        if what == "remove":
            del owner[last]
        elif what == "add" and isinstance(owner, dict):
            owner[draw(st.sampled_from(NAMES))] = odd
        else:
            owner[last] = odd
    return made


def converters() -> dict[str, Convert]:
    inputs, out, all_rows = (Path("in.jsonl"),), Path("out.jsonl"), Selection()
    made = {
        f"grpo {f}": grpo.job(inputs, out, all_rows, format=f) for f in ("simple", "gym", "verl")
    }
    made |= {f"sft {f}": sft.job(inputs, out, all_rows, format=f) for f in ("openai", "simple")}
    made |= {
        f"dpo {f}": dpo.job(inputs, out, all_rows, Pairing(), format=f)
        for f in ("simple", "openai")
    }
    return {name: job.convert for name, job in made.items()}


def outcome(convert: Convert, one: Row) -> Any:
    """The record, or why there is none."""
    try:
        return convert(one)
    except (BadRowError, SkippedRowError) as error:
        return str(error)


@given(odd_rows())
def test_a_row_of_any_shape_is_converted_skipped_or_refused_with_a_reason(one: Row) -> None:
    before = copy.deepcopy(one)
    for convert in converters().values():
        assert outcome(convert, one)
        assert one == before


@given(st.lists(odd_rows(), min_size=2, max_size=6))
def test_what_a_row_gives_does_not_depend_on_the_rows_before_it(rows: list[Row]) -> None:
    for name, convert in converters().items():
        if name != "grpo verl":  # which numbers its rows
            alone = [outcome(converters()[name], one) for one in rows]
            assert [outcome(convert, one) for one in rows] == alone


def replaced(one: Row) -> Iterator[Row]:
    """The row with each of its parts replaced by each odd value."""
    for *way, last in filter(None, places(one)):
        for odd in [*ODD, 10**30, float("nan"), "\ud83d"]:
            made = copy.deepcopy(one)
            owner: Any = made
            for key in way:
                owner = owner[key]
            owner[last] = odd
            yield made


@pytest.mark.parametrize("name", ["grpo", "sft", "dpo"])
def test_reading_some_fields_gives_what_reading_the_whole_row_gives(
    name: str, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [one | {"reward": n / 4, "extra": "e"} for n, one in enumerate(ROWS)]
    lines = [json.dumps(made).encode() for one in rows for made in replaced(one)]
    lines += [line.replace(b'"extra": "e', b'"extra": "\xff') for line in lines[:300]]
    source.write_bytes(b"\n".join([*lines, b'{"cut']))
    made = {}
    for load in (read_fields, orjson.loads):
        out = tmp_path / f"{load.__name__}.jsonl"
        rejects = Rejects(tmp_path / f"{load.__name__}.rejects.jsonl", allowed_share=1.0)
        if name == "dpo":
            how = Pairing()
            job = dpo.job((source,), out, Selection(), how, rejects=rejects)
            report = dpo.transform(replace(job, load=load), how)
        else:
            job = {"grpo": grpo.job, "sft": sft.job}[name](
                (source,), out, Selection(), rejects=rejects
            )
            report = transform(replace(job, load=load))
        report.written = {}
        files = [out.read_bytes(), (tmp_path / f"{load.__name__}.rejects.jsonl").read_bytes()]
        made[load.__name__] = (report, files)
    assert made["read_fields"] == made["loads"]
    assert made["loads"][0].read == len(lines) + 1


def test_the_fields_read_are_those_that_are_looked_at() -> None:
    assert set(grpo.GROUND_TRUTHS) < Fields.__annotations__.keys()
    names = {wire.RESPONSES_CREATE_PARAMS, wire.RESPONSE, wire.REWARD, wire.MASK_SAMPLE}
    assert names | {wire.FAILURE_CLASS} < Fields.__annotations__.keys()


def test_text_that_no_file_can_hold_goes_to_the_rejects(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    half_an_emoji = json.dumps(row("Q?", "\ud83d"))
    source.write_text(json.dumps(row("Q?", "A")) + "\n" + half_an_emoji + "\n")
    rejects = Rejects(tmp_path / "rejects.jsonl", allowed_share=0.5)
    report = transform(sft.job((source,), out, Selection(), rejects=rejects))
    assert report.rejected == {"no valid text": 1}
    assert json.loads((tmp_path / "rejects.jsonl").read_text())["line"] == 2


@pytest.mark.parametrize("tools", [3, ["calculator"], {"name": "f"}])
def test_tools_that_are_no_list_of_objects_are_refused_by_path(tools: Any) -> None:
    one = row("Q?", "A")
    one["responses_create_params"]["tools"] = tools
    with pytest.raises(BadRowError, match="list of objects") as error:
        converters()["sft openai"](one)
    assert error.value.at == "$.responses_create_params.tools"


def test_the_reader_passes_a_reward_of_nan_on_for_the_count_of_invalid_ones(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row("Q?", "A", reward=float("nan"))) + "\n")
    assert [line.number for line in Reader([source])] == [1]
