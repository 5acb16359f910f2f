r"""Mathematical answers, compared by the math-verify library in processes with limits.

The last `\boxed{}` counts where there is a box, else the last expression of the end of the text.
Refuses to call an answer wrong that took too long to compare: that has no verdict.

math-verify limits time by signals, which need the main thread and don't reach into C; so its own
limits are off here and a worker's are on. It takes several boxes as one set of answers, so it is
shown the last one alone.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field, field_validator

from rlbridge.evaluators.answers import balanced, has_box, last_boxed
from rlbridge.evaluators.arithmetic import integer
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.evaluators.local import (
    AnswerOptions,
    Grade,
    LocalEvaluator,
    RowFields,
    UngradableError,
)
from rlbridge.evaluators.workers import WorkerLimits, Workers

# A longer box is no answer, and parsing is far from linear.
BOX_CHARS: Final = 4_000
TAIL_CHARS: Final = 2_000
_NUMBER: Final = re.compile(r"[-+]?\d+", re.ASCII)


class MathOptions(AnswerOptions, WorkerLimits):
    """How to compare."""

    require_box: bool = False
    r"""Without a \boxed{}, nothing counts."""
    float_rounding: int = Field(default=6, ge=0, le=15)
    """Decimal places that matter where one side is no exact number."""


class MathRow(RowFields):
    """A row of NeMo Gym's math_with_judge, and of others with an `expected_answer`."""

    expected_answer: str
    """The right answer: LaTeX or a plain expression, with or without its dollar signs."""
    question: str | None = None
    """Not read; NeMo Gym's rows have it."""

    @field_validator("expected_answer")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not bare(value):
            raise ValueError("expected_answer is empty")
        if not balanced(value):
            raise ValueError("expected_answer has braces that don't balance")
        return value


def make(options: Mapping[str, Any]) -> Evaluator:
    """The evaluator with `MathOptions`."""
    how = MathOptions.parse(options, where="math")
    workers = Workers(f"{__name__}:compared", how)

    async def grade(row: MathRow, text: str) -> Grade:
        expected = bare(row.expected_answer)
        answer = final_answer(text, require_box=how.require_box)
        if answer is None:
            return Grade(0.0)
        if _NUMBER.fullmatch(expected) and _NUMBER.fullmatch(answer):
            return Grade(float(integer(answer) == integer(expected)), answer)
        boxed = has_box(text)
        right, parsed = await workers.call(
            expected=expected, answer=answer, boxed=boxed, rounding=how.float_rounding
        )
        return Grade(float(right), answer if boxed or parsed is None else parsed)

    return LocalEvaluator(MathRow, how, grade_async=grade, aclose=workers.aclose)


def final_answer(text: str, *, require_box: bool) -> str | None:
    """What is to be compared; None if there is nothing, or too much of it."""
    if has_box(text) or require_box:
        box = last_boxed(text)
        return None if box is None or len(box) > BOX_CHARS else bare(box) or None
    return text[-TAIL_CHARS:].strip() or None


def bare(text: str) -> str:
    """`text` without blanks and math delimiters around it, or a box that is all of it."""
    text = text.strip()
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : -len(closing)].strip()
            break
    box = last_boxed(text)
    return box.strip() if box is not None and text == f"\\boxed{{{box}}}" else text


def compared(expected: str, answer: str, boxed: bool, rounding: int) -> tuple[bool, str | None]:
    """Whether math-verify takes them as equal, and what it read. Runs in a worker."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of limits that are off
    # What it can't read as LaTeX it compares as text.
    gold = parse(f"\\boxed{{{expected}}}", [LatexExtractionConfig()], parsing_timeout=None)
    if not gold:
        raise UngradableError(f"$.expected_answer: math-verify can't read {expected[:100]!r}")
    shown = f"\\boxed{{{answer}}}" if boxed else answer
    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    found = parse(shown, kinds, parsing_timeout=None)
    if not found:
        return False, None
    right = verify(gold, found, float_rounding=rounding, timeout_seconds=None, raise_on_error=False)
    text = found[-1] if isinstance(found[-1], str) else None
    return bool(right), text if text is None else text[:1000]


SPEC: Final = EvaluatorSpec(
    name="math",
    summary="the answer equals the expected one, as math-verify compares LaTeX and expressions",
    make=make,
    row=MathRow,
    options=MathOptions,
    requires=("math_verify",),
    install="pip install 'rlbridge[evaluators]'",
)
