r"""Answers that must be the expected text, normalised the same way on both sides.

The answer is the last `\boxed{}`, or what follows the last `prefix`, or the whole text.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, field_validator

from rlbridge.evaluators.answers import has_box, last_boxed
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.evaluators.local import AnswerOptions, Grade, LocalEvaluator, RowFields

_ARTICLES: Final = re.compile(r"\b(?:a|an|the)\b")


class ExactMatchOptions(AnswerOptions):
    """Where the answer is, and what of it doesn't matter."""

    extract: Literal["auto", "boxed", "whole"] = "auto"
    r"""`boxed`: the last \boxed{} and nothing else; `whole`: all; `auto`: the box if any."""
    prefix: str | None = None
    """With `whole` or no box: the answer is what follows the last of these on its line."""
    ignore_case: bool = True
    """Compare without case."""
    ignore_punctuation: bool = False
    """Leave out punctuation and symbols, as question answering does."""
    ignore_articles: bool = False
    """Leave out a, an and the."""
    unicode_form: Literal["NFC", "NFKC"] = "NFKC"
    """NFKC makes one of characters that look alike (full width, ligatures); NFC doesn't."""


class ExactMatchRow(RowFields):
    """A row with one right answer, or several that are equally right."""

    expected_answer: str | list[str] = Field(min_length=1)
    """The right answer, or a list of such."""

    @field_validator("expected_answer")
    @classmethod
    def _says_something(cls, value: str | list[str]) -> str | list[str]:
        if not all(part.strip() for part in ([value] if isinstance(value, str) else value)):
            raise ValueError("an expected answer is empty: an empty answer would be right")
        return value


def make(options: Mapping[str, Any]) -> Evaluator:
    """The evaluator with `ExactMatchOptions`."""
    how = ExactMatchOptions.parse(options, where="exact_match")

    def grade(row: ExactMatchRow, text: str) -> Grade:
        expected = row.expected_answer
        wanted = {normalised(part, how) for part in _listed(expected)}
        answer = normalised(extracted(text, how), how)
        return Grade(float(bool(answer) and answer in wanted), answer or None)

    return LocalEvaluator(ExactMatchRow, how, grade)


def extracted(text: str, how: ExactMatchOptions) -> str:
    """The part of `text` that is the answer; empty if there is none."""
    if how.extract != "whole" and (how.extract == "boxed" or has_box(text)):
        return last_boxed(text) or ""
    if how.prefix:
        _, found, rest = text.rpartition(how.prefix)
        return rest.partition("\n")[0] if found else ""
    return text


def normalised(text: str, how: ExactMatchOptions) -> str:
    """`text` without what the options ignore, blanks as one."""
    text = unicodedata.normalize(how.unicode_form, text)
    if how.ignore_case:
        text = text.casefold()
    if how.ignore_punctuation:
        text = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text)
    if how.ignore_articles:
        text = _ARTICLES.sub(" ", text)
    # Characters nobody sees would make two equal answers differ.
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(text.split())


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


SPEC: Final = EvaluatorSpec(
    name="exact_match",
    summary="the answer is the expected text, up to case, blanks and what you choose",
    make=make,
    row=ExactMatchRow,
    options=ExactMatchOptions,
)
