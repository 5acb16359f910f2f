"""Rows of Gym JSON lines: read with their place, refused by line and path."""

import json
from pathlib import Path

import pytest

from rlbridge.errors import ConfigError
from rlbridge.prompts import PromptConfig
from rlbridge.rows import agent_of, messages_of, read_rows, tools_of


def test_rows_carry_their_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [where.rpartition(":")[2] for where, _ in read_rows(path)] == ["1", "3"]


@pytest.mark.parametrize(
    ("text", "words"), [("{", r"rows.jsonl:1: not JSON"), ("[1]", "JSON object"), ("", "no rows")]
)
def test_a_bad_file_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_rows(path)


def test_a_prompt_may_be_text_messages_or_parts() -> None:
    def prompt(**params: object) -> list[dict[str, object]]:
        return messages_of({"responses_create_params": params}, "row 0")

    assert prompt(input="hi") == [{"role": "user", "content": "hi"}]
    parts = [{"role": "developer", "content": [{"type": "input_text", "text": "be brief"}]}]
    assert prompt(input=parts) == [{"role": "system", "content": "be brief"}]
    both = prompt(input="hi", instructions="be brief")
    assert [message["role"] for message in both] == ["system", "user"]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"responses_create_params": {"input": []}},
        {"responses_create_params": {"input": [{"role": "user", "content": None}]}},
        {"responses_create_params": {"input": [{"type": "function_call", "name": "f"}]}},
        {"responses_create_params": {"input": {"role": "user", "content": "hi"}}},
        {"responses_create_params": {"input": [{"content": "nobody said it"}]}},
        {"responses_create_params": {"input": [{"role": 3, "content": "hi"}]}},
        {"responses_create_params": {"input": [{"role": "user", "content": ["hi"]}]}},
        {"responses_create_params": {"input": [{"role": "user", "content": [{"text": None}]}]}},
    ],
)
def test_a_row_without_a_chat_prompt_is_refused_by_path(row: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"row 0: \$\.responses_create_params\.input"):
        messages_of(row, "row 0")


def test_what_a_policy_would_not_see_of_a_prompt_is_refused_by_path() -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    said = {"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, picture]}
    with pytest.raises(ConfigError, match=r"input\[0\]\.content\[1\] \(input_image\) is no text"):
        messages_of({"responses_create_params": {"input": [said]}}, "row 0")
    with pytest.raises(ConfigError, match=r"row 0: .*instructions must be text, not list"):
        messages_of({"responses_create_params": {"input": "a", "instructions": ["b"]}}, "row 0")


@pytest.mark.parametrize("tools", [{"type": "function"}, ["add"], [{"type": "function"}]])
def test_tools_that_are_none_are_refused_by_path(tools: object) -> None:
    with pytest.raises(ConfigError, match=r"row 0: \$\.responses_create_params\.tools"):
        tools_of({"responses_create_params": {"input": "a", "tools": tools}}, "row 0")


def test_a_row_names_its_agent_or_none() -> None:
    assert agent_of({"agent_ref": {"type": "responses_api_agents", "name": "math"}}, "") == "math"
    for ref in (None, {}, {"name": None}, {"name": ""}):
        assert agent_of({"agent_ref": ref}, "") is None
    for wrong in ("math", ["math"], 1, {"name": {"name": "math"}}, {"name": 1}):
        with pytest.raises(ConfigError, match=r"row 0: \$\.agent_ref must be an object"):
            agent_of({"agent_ref": wrong}, "row 0")


def test_a_prompt_config_is_applied_to_each_row_and_names_the_line_it_refuses(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "1 + 1"}\n\n{"question": "2 + 2"}\n')
    prompt = PromptConfig(user="Solve {problem}")
    [(where, row)] = read_rows(path, 1, prompt)
    assert messages_of(row, where) == [{"role": "user", "content": "Solve 1 + 1"}]
    assert row["problem"] == "1 + 1"
    with pytest.raises(ConfigError, match=r"rows\.jsonl:3: the prompt needs the field 'problem'"):
        read_rows(path, prompt=prompt)


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_an_integer_that_would_be_rounded_on_the_wire_is_refused(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": "{10**20}", "truth": {{"answers": [1, {number}]}}}}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: \$\.truth\.answers\[1\] is an integer"):
        read_rows(path)


def test_numbers_and_text_of_any_kind_are_read_as_they_are(tmp_path: Path) -> None:
    row = {"n": [2**64 - 1, -(2**63), 0.1, -0.0, 1e-320], "null": None, "text": "é\u2028🙂{x}"}
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    [(_, found)] = read_rows(path)
    assert json.dumps(found) == json.dumps(row)
