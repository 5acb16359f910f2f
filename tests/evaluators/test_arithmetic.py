import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbridge.evaluators.arithmetic import grade, integer, last_integer


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [
        ("4", "4"),
        ("It is 4.", "4"),
        ("2 + 2 = 4", "4"),
        ("7-3", "3"),
        ("it is -3", "-3"),
        ("\N{MINUS SIGN}3", "-3"),
        ("1,234", "1234"),
        ("007", "7"),
        ("-0", "0"),
        ("4.0", "4"),
        ("4.5", None),
        ("\\boxed{4} and not 5", "4"),
        ("\\boxed{1} then \\boxed{ 2 }", "2"),
        ("\\boxed{none} 4", None),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_integer_counts(answer: str, extracted: str | None) -> None:
    assert last_integer(answer) == extracted


@given(st.integers())
def test_every_integer_is_found_where_it_is_written(value: int) -> None:
    assert last_integer(f"The answer is {value}.") == str(value)
    assert grade(f"\\boxed{{{value}}}", str(value)).reward == 1.0
    assert grade(str(value + 1), str(value)).reward == 0.0


@given(st.text())
def test_any_text_is_graded(text: str) -> None:
    assert grade(text, "4").reward in (0.0, 1.0)


def test_numbers_longer_than_python_converts_are_compared() -> None:
    digits = "9" * 10_000
    assert grade(digits, digits).reward == 1.0


@pytest.mark.parametrize("expected", ["", "four", "4.5", "4 5"])
def test_a_row_that_nothing_can_match_is_refused(expected: str) -> None:
    assert integer(expected) is None
    with pytest.raises(ValueError, match="expected_answer"):
        grade("4", expected)
