"""Prompt configs: applied once, everything kept, every mistake named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbridge.errors import ConfigError
from rlbridge.prompts import PromptConfig
from rlbridge.templates import Template

MATH = PromptConfig(user="Solve this problem carefully:\n{problem}", system="You are a solver.")
FEW = PromptConfig(
    user="Question: {problem}",
    few_shot=(
        {"problem": "What is 2 + 2?", "assistant": "\\boxed{4}"},
        {"problem": "What is 3 + 3?", "assistant": "{6}"},
    ),
)


@given(st.text())
def test_any_value_stands_in_the_prompt_as_it_is(value: str) -> None:
    config = PromptConfig(user="[{problem}]")
    assert config.messages({"problem": value}) == [{"role": "user", "content": f"[{value}]"}]


@given(st.text(), st.text(alphabet="abc{} "))
def test_a_value_is_never_a_template(name: str, value: str) -> None:
    assert Template("{x}{x}", where="t").render({"x": value, name: "no"}) == value + value


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda key: key not in ("responses_create_params", "problem")),
        st.none() | st.integers() | st.text() | st.lists(st.text()),
    ),
    st.text(max_size=10),
)
def test_every_field_of_a_row_is_kept(extra: dict[str, Any], problem: str) -> None:
    extra.pop("rlbridge_prompt", None)
    params = {"temperature": 0.5}
    row = {**extra, "problem": problem, "responses_create_params": params}
    done = MATH.apply(row)
    kept = {key: done[key] for key in row if key != "responses_create_params"}
    assert kept == {**extra, "problem": problem}
    assert done["responses_create_params"]["temperature"] == 0.5
    assert params == {"temperature": 0.5}  # the caller's stays as it was


def test_examples_are_turns_before_the_question() -> None:
    assert [message["content"] for message in FEW.messages({"problem": "What is 1 + 1?"})] == [
        "Question: What is 2 + 2?",
        "\\boxed{4}",
        "Question: What is 3 + 3?",
        "{6}",
        "Question: What is 1 + 1?",
    ]


def test_a_prompted_row_is_refused_or_passed_but_never_prompted_twice() -> None:
    once = MATH.apply({"problem": "1 + 1"})
    with pytest.raises(ConfigError, match=r"rows\.jsonl:3: it was prompted already"):
        MATH.apply(once, where="rows.jsonl:3")
    assert MATH.apply(once, prompted="pass") == once


@pytest.mark.parametrize("given", ["text", [{"role": "user", "content": "1 + 1"}]])
def test_a_row_with_an_input_counts_as_prompted(given: Any) -> None:
    row = {"problem": "1 + 1", "responses_create_params": {"input": given}}
    with pytest.raises(ConfigError, match="holds a prompt already"):
        MATH.apply(row)


@given(st.text(max_size=30))
def test_a_field_that_is_a_rendered_prompt_is_refused(problem: str) -> None:
    rendered = MATH.messages({"problem": problem})[-1]["content"]
    with pytest.raises(ConfigError, match="prompted before"):
        MATH.messages({"problem": f"  {rendered}\n"})


def test_a_field_that_carries_the_examples_is_refused_but_asking_one_of_them_is_not() -> None:
    rendered = "\n".join(message["content"] for message in FEW.messages({"problem": "1 + 1?"}))
    with pytest.raises(ConfigError, match="examples already"):
        FEW.messages({"problem": rendered})
    assert len(FEW.messages({"problem": "What is 2 + 2?"})) == 5


def test_a_missing_field_is_named_with_its_place_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as error:
        MATH.apply({"problme": "1 + 1"}, where="rows.jsonl:7")
    assert "rows.jsonl:7" in str(error.value)
    assert "'problem'" in str(error.value)
    assert "did you mean 'problme'" in str(error.value)


@pytest.mark.parametrize("value", [{"a": 1}, ["x"], True, [{"A": None}]])
def test_a_field_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="takes text"):
        MATH.messages({"problem": value})


def test_options_read_as_lines() -> None:
    config = PromptConfig.load("generic/multiple_choice")
    row = {"question": "Which?", "options": [{"A": "this"}, {"B": "that"}]}
    assert config.messages(row)[-1]["content"].endswith("Which?\n\nA: this\nB: that")


SYSTEM_ROWS = [
    {"instructions": "Be brief."},
    {"input": [{"role": "system", "content": "Be brief."}]},
    {"input": [{"role": "developer", "content": "Be brief."}]},
    {"input": [{"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}]},
]


@pytest.mark.parametrize("params", SYSTEM_ROWS)
def test_two_system_messages_are_refused_unless_one_is_chosen(params: dict[str, Any]) -> None:
    row = {"problem": "1 + 1", "responses_create_params": params}
    with pytest.raises(ConfigError, match="row_system"):
        MATH.apply(row)
    for choice, expected in (("row", "Be brief."), ("config", "You are a solver.")):
        config = MATH.model_copy(update={"row_system": choice})
        done = config.apply(row)["responses_create_params"]
        systems = [m["content"] for m in done["input"] if m["role"] == "system"]
        assert [*systems, *filter(None, [done.get("instructions")])] == [expected]


@pytest.mark.parametrize("params", SYSTEM_ROWS)
def test_a_row_s_system_message_stays_where_the_config_has_none(params: dict[str, Any]) -> None:
    done = FEW.apply({"problem": "1 + 1", "responses_create_params": params})
    assert "Be brief." in str(done["responses_create_params"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"user": "no place"}, "no place for a field"),
        ({"user": "{a.b}"}, "a.b"),
        ({"user": "{a!r}"}, "place"),
        ({"user": "{a:>5}"}, "place"),
        ({"user": "{}"}, "double a brace"),
        ({"user": "{a} }"}, "double a brace"),
        ({"user": "{a}", "few_shot": [{"b": "1", "assistant": "x"}]}, "few_shot.0"),
        ({"user": "{a}", "few_shot": [{"a": "1", "assistant": " "}]}, "few_shot.0.assistant"),
        ({"user": "{a}", "sytem": "x"}, "did you mean 'system'"),
    ],
)
def test_a_wrong_config_is_refused_with_the_reason(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        PromptConfig.parse(data, where="p.yaml")
    assert says in str(error.value)
    assert "p.yaml" in str(error.value)


def test_a_nemo_skills_config_loads_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "skills.yaml"
    path.write_text("system: ''\nuser: |-\n  Put it in \\boxed{{}}.\n\n  {problem}\n")
    config = PromptConfig.load(path)
    assert config.messages({"problem": "1"})[0]["content"] == "Put it in \\boxed{}.\n\n1"
    assert config.digest == PromptConfig.load(path).digest


@pytest.mark.parametrize("name", ["generic/math", "generic/multiple_choice", "generic/code"])
def test_the_built_in_prompts_load(name: str) -> None:
    assert PromptConfig.load(name).names


def test_an_unknown_prompt_lists_the_built_in_ones() -> None:
    with pytest.raises(ConfigError, match="generic/math"):
        PromptConfig.load("generic/maths")
