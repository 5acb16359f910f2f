r"""Answers that name one of a row's options, in the form of NeMo Gym's `mcqa` rows.

The last `\boxed{}` holds a letter, or a letter and its option's text, or, with `lenient`, the
text alone. Refuses to guess: a box with two letters, or with texts of two options, is no answer.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from rlbridge.evaluators.answers import last_boxed
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.evaluators.local import AnswerOptions, Grade, LocalEvaluator, RowFields

_WRAPPER: Final = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf|mathit)\s*\{([^{}]*)\}")
_LETTERS: Final = re.compile(r"(?<![^\W_])([A-Z])(?![^\W_])")
_LABEL: Final = re.compile(r"\s*[(\[]?([A-Z])\s*[:).\]\-]")
_ANSWER: Final = re.compile(r"(?i)\banswer\b(?:\s+is)?[\s:*_]*([^\n]{0,200})")
_BOX_CHARS: Final = 2_000  # of a box or line; more is no answer


class MultipleChoiceOptions(AnswerOptions):
    """Where the letter is."""

    extract: Literal["boxed", "lenient", "answer_line"] = "boxed"
    r"""`boxed`: the letter in the last \boxed{}; `lenient`: its option's whole text will do, too;
    `answer_line`: the last "Answer: B" of the text."""


class MultipleChoiceRow(RowFields):
    """A row of NeMo Gym's mcqa."""

    options: list[dict[str, str | None]] = Field(min_length=1)
    """The options, each `{letter: text}`."""
    expected_answer: str
    """The right option's letter."""

    @model_validator(mode="after")
    def _can_be_right(self) -> Self:
        letters = list(texts_of(self))
        if not letters or any(len(letter) != 1 or not letter.isalpha() for letter in letters):
            raise ValueError("options must be objects of one letter and its text")
        if self.expected_answer.strip().upper() not in letters:
            raise ValueError(
                f"expected_answer {self.expected_answer!r} is none of the options "
                f"{', '.join(letters)}: no answer could be right"
            )
        return self


def make(options: Mapping[str, Any]) -> Evaluator:
    """The evaluator with `MultipleChoiceOptions`."""
    how = MultipleChoiceOptions.parse(options, where="multiple_choice")

    def grade(row: MultipleChoiceRow, text: str) -> Grade:
        letter = chosen(text, texts_of(row), how.extract)
        return Grade(float(letter == row.expected_answer.strip().upper()), letter)

    return LocalEvaluator(MultipleChoiceRow, how, grade)


def texts_of(row: MultipleChoiceRow) -> dict[str, str]:
    """Option texts by their letters, upper case, in order."""
    pairs = ((key, text) for option in row.options for key, text in option.items())
    return {key.strip().upper(): text for key, text in pairs if text is not None}


def chosen(text: str, options: Mapping[str, str], extract: str) -> str | None:
    """The letter of the option that `text` names; None if it names none, or several."""
    if extract == "answer_line":
        lines = _ANSWER.findall(text)
        return _letter(lines[-1], options) if lines else None
    box = last_boxed(text)
    if box is None or len(box) > _BOX_CHARS:
        return None
    letter = _letter(box, options)
    if letter is None and extract == "lenient":
        wanted = _folded(box)
        matching = [key for key, option in options.items() if _folded(option) == wanted]
        return matching[0] if len(matching) == 1 and wanted else None
    return letter


def _letter(answer: str, options: Mapping[str, str]) -> str | None:
    """A letter alone (brackets don't matter), or a label with its own option's text after it."""
    plain = _unwrapped(answer).strip().strip("*_$ .")
    found = _LETTERS.findall(plain)
    bare = re.sub(r"[\W_]", "", plain)
    if len(found) == 1 and bare == found[0]:
        return found[0] if found[0] in options else None
    label = _LABEL.match(plain)
    if label is None or label[1] not in options:
        return None
    rest, own = _folded(plain[label.end() :]), _folded(options[label[1]])
    # "E: text" is E; "A) or B)" is no answer.
    others = set(_LETTERS.findall(plain[label.end() :])) - {label[1]}
    return label[1] if rest in ("", own) or not others & set(options) else None


def _unwrapped(text: str) -> str:
    while True:
        plain = _WRAPPER.sub(r"\1", text)
        if plain == text:
            return plain
        text = plain


def _folded(text: str) -> str:
    return " ".join(_unwrapped(text).casefold().split()).strip(" .$*")


SPEC: Final = EvaluatorSpec(
    name="multiple_choice",
    summary="the answer names the right option; rows of NeMo Gym's mcqa as they are",
    make=make,
    row=MultipleChoiceRow,
    options=MultipleChoiceOptions,
)
