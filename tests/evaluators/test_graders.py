"""Verdicts, and what a policy might try to get a better one."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbridge.contracts.reward import FailureClass, Fault, Reward
from rlbridge.errors import ConfigError, ContractError
from rlbridge.evaluators import exact_match, multiple_choice
from rlbridge.evaluators.answers import answer_text, last_boxed, last_fenced
from rlbridge.evaluators.local import UngradableError
from rlbridge.evaluators.workers import WorkerLimits, Workers
from rlbridge.plugins import Plugins
from rlbridge.testing import make_message, make_response
from tests.evaluators.verdicts import judged, value

CHOICES = {"options": [{"A": "red"}, {"B": "green"}, {"C": "blue"}], "expected_answer": "B"}


# Where the answer is.


@given(st.text(alphabet="ab{}\\ox d", max_size=60))
def test_a_box_is_found_in_any_text_with_its_braces_balanced(text: str) -> None:
    box = last_boxed(text)
    assert box is None or f"{{{box}}}" in text
    if "{" not in text and "}" not in text and not text.endswith("\\"):
        assert last_boxed(f"x \\boxed{{{text}}} y") == text


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {3}", "3"),
        ("\\fbox{no} \\boxed{4}", "4"),
        ("\\boxed{5} and \\boxed{6", None),
        ("\\boxed", None),
        ("\\boxed{}", ""),
        ("\\boxed{\\}", None),
    ],
)
def test_the_last_box_counts_and_one_cut_off_is_none(text: str, box: str | None) -> None:
    assert last_boxed(text) == box


def test_enormous_texts_take_no_more_than_linear_time() -> None:
    for unit in ("\\boxed{", "{", "}", "```\n", "`", "\\", "a.", "answer: "):
        text = unit * (500_000 // len(unit))
        last_boxed(text)
        last_fenced(text)
        assert value(judged("exact_match", {"expected_answer": "x"}, text)) == 0.0
        for extract in ("boxed", "lenient", "answer_line"):
            assert value(judged("multiple_choice", CHOICES, text, extract=extract)) == 0.0


def test_the_last_message_is_the_answer_in_every_form_of_a_response() -> None:
    message = {"role": "assistant", "content": "two"}
    forms = [
        "two",
        message,
        [{"role": "assistant", "content": "one"}, {"role": "tool", "content": "x"}, message],
        {"choices": [{"message": message}]},
        make_response(make_message("one"), make_message("two")),
        [make_message("one"), make_message("two")],
    ]
    assert {answer_text(form) for form in forms} == {"two"}
    assert answer_text([]) == ""
    assert answer_text({"role": "user", "content": "two"}) == ""
    with pytest.raises(ContractError, match="int"):
        answer_text(5)


def test_what_is_thought_is_no_answer_where_told_so() -> None:
    row = {"expected_answer": "4"}
    thought = "<think>\\boxed{4}</think> I don't know"
    assert value(judged("arithmetic", row, thought)) == 1.0
    for name in ("arithmetic", "math", "exact_match"):
        assert value(judged(name, row, thought, after="</think>")) == 0.0
        assert value(judged(name, row, "\\boxed{4}", after="</think>")) == 0.0
        assert value(judged(name, row, "<think></think>\\boxed{4}", after="</think>")) == 1.0


# exact_match


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    options = {"ignore_punctuation": True, "ignore_articles": True}
    how = exact_match.ExactMatchOptions.parse(options)
    once = exact_match.normalised(text, how)
    assert exact_match.normalised(once, how) == once


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("Paris", {}, 1.0),
        ("  paris\n", {}, 1.0),
        ("\uff30\uff41ris", {}, 1.0),
        ("Pa\u200bris", {}, 1.0),
        ("It is \\boxed{Paris}", {}, 1.0),
        ("\\boxed{Rome} Paris", {}, 0.0),
        ("Paris", {"extract": "boxed"}, 0.0),
        ("paris", {"ignore_case": False}, 0.0),
        ("the Paris!", {"ignore_punctuation": True, "ignore_articles": True}, 1.0),
        ("Answer: Rome\nAnswer: Paris", {"prefix": "Answer:"}, 1.0),
        ("Paris", {"prefix": "Answer:"}, 0.0),
        ("Paris Rome", {}, 0.0),
        ("", {}, 0.0),
    ],
)
def test_exact_match(answer: str, options: dict[str, Any], expected: float) -> None:
    row = {"expected_answer": ["Paris", "City of Light"]}
    assert value(judged("exact_match", row, answer, **options)) == expected


# multiple_choice


@pytest.mark.parametrize(
    ("answer", "extract", "extracted"),
    [
        ("\\boxed{B}", "boxed", "B"),
        ("\\boxed{A} no, \\boxed{B}", "boxed", "B"),
        ("\\boxed{\\text{B}}", "boxed", "B"),
        ("\\boxed{(B)}", "boxed", "B"),
        ("\\boxed{\\textbf{B}.}", "boxed", "B"),
        ("\\boxed{B: green}", "boxed", "B"),
        ("\\boxed{B) because A is wrong}", "boxed", None),
        ("\\boxed{A, B, C}", "boxed", None),
        ("\\boxed{AB}", "boxed", None),
        ("\\boxed{A or B}", "boxed", None),
        ("\\boxed{D}", "boxed", None),
        ("\\boxed{b}", "boxed", None),
        ("\\boxed{\uff22B}", "boxed", None),
        ("\\boxed{\u0392}", "boxed", None),  # a Greek capital beta
        ("\\boxed{green}", "boxed", None),
        ("\\boxed{green}", "lenient", "B"),
        ("\\boxed{green blue}", "lenient", None),
        ("\\boxed{}", "lenient", None),
        ("B", "boxed", None),
        ("Answer: A\n**Answer: B**", "answer_line", "B"),
        ("The answer is (B).", "answer_line", "B"),
        ("Answer: A or B", "answer_line", None),
        ("Answer:", "answer_line", None),
        ("", "boxed", None),
    ],
)
def test_multiple_choice(answer: str, extract: str, extracted: str | None) -> None:
    reward = judged("multiple_choice", CHOICES, answer, extract=extract)
    assert reward.valid
    assert reward.extracted == extracted
    assert reward.value == float(extracted == "B")


@given(st.text(), st.sampled_from(["boxed", "lenient", "answer_line"]))
def test_any_text_names_one_option_or_none(text: str, extract: str) -> None:
    options = {"A": "red", "B": "green"}
    for answer in (text, f"\\boxed{{{text}}}", f"Answer: {text}"):
        assert multiple_choice.chosen(answer, options, extract) in ("A", "B", None)


# math, in real workers


@pytest.fixture(scope="module")
def maths() -> Any:
    """One pool of workers for all: (row, answer) pairs to rewards."""
    evaluator = Plugins().evaluator("math", {"cpu_s": 5, "workers": 2})

    def ask(*pairs: tuple[str, str]) -> list[Reward]:
        async def all_of_them() -> list[Reward]:
            asked = (evaluator.verify({"expected_answer": gold}, text) for gold, text in pairs)
            return await asyncio.gather(*asked)

        return asyncio.run(all_of_them())  # a loop of its own each time

    yield ask
    asyncio.run(evaluator.aclose())


def test_equal_answers_are_right_and_others_wrong(maths: Any) -> None:
    right = [
        ("\\frac{1}{2}", "\\boxed{0.5}"),
        ("$\\frac12$", "so it is $\\frac{2}{4}$"),
        ("1/2", "\\boxed{\\dfrac{1}{2}}"),
        ("42", "The answer is 42."),
        ("42", "\\boxed{41} no, \\boxed{42}"),
        ("1,000", "\\boxed{1000}"),
        ("x=3", "\\boxed{3}"),
        ("x^2+2x+1", "\\boxed{(x+1)^2}"),
        ("(1, 2)", "\\boxed{(1,2)}"),
        ("\\boxed{7}", "\\boxed{7}"),
        ("9" * 6000, "\\boxed{" + "9" * 3900 + "}"),
    ]
    wrong = [
        ("42", "\\boxed{42} no, \\boxed{41}"),
        ("42", "\\boxed{41, 42}"),
        ("42", "\\boxed{41 \\text{ or } 42}"),
        ("42", "\\boxed{x}"),
        ("42", "\\boxed{42"),
        ("42", "\\boxed{}"),
        ("42", ""),
        ("5", "\\boxed{\\pm 5}"),
        ("5", "\\boxed{x=5, x=6}"),
        ("0", "\\boxed{\\text{nan}}"),
        ("1", "\\boxed{\\text{True}}"),
        ("2", "\\boxed{" + "1+1+" * 2000 + "0}"),
    ]
    big = right.pop()
    for pair, reward in zip(right, maths(*right), strict=True):
        assert value(reward) == 1.0, pair
    for pair, reward in zip(wrong, maths(*wrong), strict=True):
        assert value(reward) == 0.0, pair
    assert [value(reward) for reward in maths(big, (big[0][:3900], big[1]))] == [0.0, 1.0]


def test_an_answer_too_costly_to_compare_has_no_verdict_and_hangs_nobody(maths: Any) -> None:
    power, fine = maths(("42", "\\boxed{9^{9^{9^{9}}}}"), ("42", "\\boxed{6 \\cdot 7}"))
    nest = "\\boxed{" + "(" * 1900 + "1" + ")" * 1900 + "}"
    for reward in (power, judged("math", {"expected_answer": "42"}, nest, cpu_s=1)):
        assert not reward.valid
        assert reward.fault is Fault.DATA  # asking again will not help
        assert "CPU time" in reward.detail or "too large" in reward.detail
    assert value(fine) == 1.0


def test_an_expected_answer_nobody_can_read_is_the_row_s_fault(maths: Any) -> None:
    unreadable, empty = maths(("\\frac{", "\\boxed{1}"), ("$ $", "\\boxed{1}"))
    assert (unreadable.failure, empty.failure) == (FailureClass.BAD_ROW, FailureClass.BAD_ROW)


async def test_a_worker_that_dies_is_told_and_replaced() -> None:
    workers = Workers("os:_exit", WorkerLimits(workers=1))
    for status in (7, 8):
        with pytest.raises(UngradableError, match=f"status {status}") as error:
            await workers.call(status=status)
        assert error.value.failure is FailureClass.SERVER_ERROR
    await workers.aclose()


# regex and json_schema


def test_a_pattern_that_backtracks_for_ever_ends() -> None:
    pattern = "(a+)+b"
    reward = judged("regex", {}, "a" * 60, pattern=pattern, cpu_s=1)
    assert not reward.valid
    assert reward.fault is Fault.DATA
    assert value(judged("regex", {}, "xaab", pattern=pattern)) == 1.0


@pytest.mark.parametrize(
    ("row", "options", "answer", "expected"),
    [
        ({"pattern": r"\d+"}, {}, "a 12", 1.0),
        ({"pattern": r"\d+"}, {"match": "full"}, "a 12", 0.0),
        ({"pattern": r"(?P<n>\d+)", "expected_answer": "2"}, {"group": "n"}, "1 2", 1.0),
        ({"pattern": r"(?P<n>\d+)", "expected_answer": "1"}, {"group": "n"}, "1 2", 0.0),
        ({}, {"pattern": "x"}, "", 0.0),
        ({}, {"pattern": "X", "ignore_case": True}, "x", 1.0),
    ],
)
def test_regex(row: Any, options: Any, answer: str, expected: float) -> None:
    assert value(judged("regex", row, answer, **options)) == expected


@pytest.mark.parametrize("pattern", ["(", ".*", "x?"])
def test_a_pattern_that_is_none_or_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="pattern"):
        Plugins().evaluator("regex", {"pattern": pattern})
    reward = judged("regex", {"pattern": pattern}, "x")
    assert not reward.valid
    assert reward.failure is FailureClass.BAD_ROW


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("answer", "expected", "parsed"),
    [
        ('{"a": 1}', 1.0, 1.0),
        ('Here:\n```json\n{"a": 1}\n```\nDone.', 1.0, 1.0),
        ('{"a": "1"}', 0.0, 1.0),
        ('{"a": NaN}', 0.0, 0.0),
        ('{"a": "x", "a": 1}', 0.0, 0.0),
        ('```json\n{"a": 1}\n```\n```json\n{}\n```', 0.0, 1.0),
        ("[" * 100_000, 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_json_schema(answer: str, expected: float, parsed: float) -> None:
    reward = judged("json_schema", {"schema_str": json.dumps(SCHEMA)}, answer)
    assert value(reward) == expected
    assert reward.valid
    assert reward.components["parsed"] == parsed


def test_a_schema_that_is_wrong_or_elsewhere_is_the_row_s_fault() -> None:
    for schema in ({"type": "objekt"}, {"$ref": "http://127.0.0.1:9/schema.json"}):
        reward = judged("json_schema", {"json_schema": schema}, "{}")
        assert not reward.valid
        assert reward.failure is FailureClass.BAD_ROW


# All of them

ROWS: dict[str, dict[str, Any]] = {
    "arithmetic": {"expected_answer": "4"},
    "exact_match": {"expected_answer": "4"},
    "multiple_choice": CHOICES,
    "math": {"expected_answer": "x+4"},
    "regex": {"pattern": "[^a]b"},
    "json_schema": {"json_schema": SCHEMA},
    "code": {"verifier_metadata": {"unit_tests": {"inputs": ["1"], "outputs": ["1"]}}},
}


@pytest.fixture(scope="module")
def evaluators() -> Any:
    loop = asyncio.new_event_loop()
    plugins = Plugins()
    made = {name: plugins.evaluator(name) for name in ROWS}
    yield loop, made
    for evaluator in made.values():
        loop.run_until_complete(evaluator.aclose())
    loop.close()


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=15, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.characters(), max_size=40))
def test_no_text_makes_an_evaluator_raise_or_passes(name: str, text: str, evaluators: Any) -> None:
    loop, made = evaluators
    reward = loop.run_until_complete(made[name].verify(ROWS[name], text))
    assert reward.valid or reward.fault is Fault.DATA
    if name in ("math", "json_schema", "code"):
        assert not reward.valid or reward.value == 0.0


@pytest.mark.parametrize("name", ROWS)
def test_a_row_without_its_fields_is_a_bad_row_and_the_answer_is_not_judged(
    name: str, evaluators: Any
) -> None:
    loop, made = evaluators
    reward = loop.run_until_complete(made[name].verify({"expected": "4"}, "4"))
    assert not reward.valid
    assert reward.failure is FailureClass.BAD_ROW
    assert "$." in reward.detail


def test_the_nearest_field_of_the_row_is_named() -> None:
    reward = judged("math", {"expected_anwser": "4"}, "4")
    assert not reward.valid
    assert "expected_anwser" in reward.detail


@pytest.mark.parametrize("name", [*ROWS, "judge", "gym"])
def test_an_unknown_option_is_refused_with_the_evaluator_s_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Plugins().evaluator(name, {"no_such_option": 1})


async def test_grading_does_not_hold_up_the_event_loop() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.05)

    evaluator = Plugins().evaluator("math", {"cpu_s": 1})
    ticking = asyncio.create_task(tick())
    reward = await evaluator.verify({"expected_answer": "1"}, "\\boxed{9^{9^{9^{9}}}}")
    ticking.cancel()
    await evaluator.aclose()
    assert not reward.valid
    assert ticks > 5  # while a second of CPU time was burnt elsewhere
