r"""Integer answers: right if the last integer of the answer is the expected one.

The answer counts inside the last ``\boxed{}`` where there is one, else in the whole text.
The reward is 1.0 or 0.0: a partial one for being near would teach a policy to round, and one for
the format alone can be earned without adding anything.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import field_validator

from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.evaluators.local import AnswerOptions, Grade, LocalEvaluator, RowFields

# A number that is not glued to a word or to another number's end; "7-3" holds 7 and 3.
_NUMBER: Final = re.compile(r"(?<![\w.])(?:(?<![)\]])[-+])?\d+(?:,\d{3})*(?:\.\d+)?", re.ASCII)
_INTEGER: Final = re.compile(r"[-+]?\d+", re.ASCII)
_BOXED: Final = re.compile(r"\\boxed\s*\{([^{}]*)\}")


class ArithmeticRow(RowFields):
    """A row whose answer is an integer."""

    expected_answer: str
    """The right integer, in digits."""

    @field_validator("expected_answer")
    @classmethod
    def _is_integer(cls, value: str) -> str:
        if integer(value) is None:
            raise ValueError("expected_answer must be an integer in digits")
        return value


def make(options: Mapping[str, Any]) -> Evaluator:
    """The evaluator; it has no options of its own."""
    how = AnswerOptions.parse(options, where="arithmetic")
    return LocalEvaluator(ArithmeticRow, how, lambda row, text: grade(text, row.expected_answer))


def grade(answer: str, expected: str) -> Grade:
    """Compare the last integer of `answer` with `expected`, an integer in digits.

    Raises:
        ValueError: `expected` is no integer, so that nothing could ever be right.
    """
    wanted = integer(expected)
    if wanted is None:
        raise ValueError(f"expected_answer must be an integer in digits, got {expected!r}")
    extracted = last_integer(answer)
    return Grade(float(extracted == wanted), extracted)


def last_integer(text: str) -> str | None:
    """The last number of `text`, normalised, or None if it is no integer or there is none."""
    boxed = _BOXED.findall(text)
    numbers = _NUMBER.findall(_plain(boxed[-1] if boxed else text))
    return integer(numbers[-1]) if numbers else None


def integer(digits: str) -> str | None:
    """`digits` without plus, commas, leading zeros and a zero fraction; None if no integer.

    Strings, because Python refuses to convert very long ones and a policy may well write one.
    """
    whole, _, fraction = _plain(digits).strip().replace(",", "").partition(".")
    if fraction.strip("0") or not _INTEGER.fullmatch(whole):
        return None
    value = whole.lstrip("+-").lstrip("0") or "0"
    return f"-{value}" if whole.startswith("-") and value != "0" else value


def _plain(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


SPEC: Final = EvaluatorSpec(
    name="arithmetic",
    summary="the last integer of the answer is the expected one",
    make=make,
    row=ArithmeticRow,
    options=AnswerOptions,
)
