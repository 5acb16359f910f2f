"""Evaluators that judge in this process: the row is checked, the answer's text is taken, graded.

What a row lacks and what can't be judged becomes an `InvalidReward` here, so that a grader only
grades. Refuses, with a `ContractError`, a response that is no response at all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlbridge.config import StrictModel, nearest
from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward, ValidReward
from rlbridge.evaluators.answers import after_last, answer_text

# Longer answers are graded in a thread, so that no event loop waits for them.
LONG_CHARS: Final = 50_000


class RowFields(BaseModel):
    """The fields of a row that an evaluator reads; others may be there."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class AnswerOptions(StrictModel):
    """What every local evaluator can be told about where the answer is."""

    after: str | None = None
    """Only what follows the last of these marks counts (`</think>`, say); without one, nothing."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What came of judging one answer.

    Attributes:
        reward: finite.
        extracted: what counted as the answer; None if nothing did.
        components: further parts of the reward.
    """

    reward: float
    extracted: str | None = None
    components: Mapping[str, float] = field(default_factory=dict)


class UngradableError(Exception):
    """Raised by a grader: there is no verdict, and why.

    Attributes:
        failure: whose fault it is.
    """

    def __init__(self, detail: str, failure: FailureClass = FailureClass.BAD_ROW) -> None:
        super().__init__(detail)
        self.failure = failure


RowT = TypeVar("RowT", bound=RowFields)
Grader = Callable[[RowT, str], Grade]
AsyncGrader = Callable[[RowT, str], Awaitable[Grade]]


async def _nothing() -> None:
    pass


class LocalEvaluator(Generic[RowT]):
    """An evaluator made of a row model and a grader.

    Args:
        row: the fields it reads.
        options: where the answer is.
        grade: a pure function; run in a thread if the answer is long.
        grade_async: instead of `grade`, for those that wait for something.
        aclose: gives back what the grader holds.
    """

    def __init__(
        self,
        row: type[RowT],
        options: AnswerOptions,
        grade: Grader[RowT] | None = None,
        *,
        grade_async: AsyncGrader[RowT] | None = None,
        aclose: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        self._row = row
        self._options = options
        self._grade = grade
        self._grade_async = grade_async
        self._aclose = aclose

    async def verify(self, row: Mapping[str, Any], response: object) -> Reward:
        """The reward of `response` for `row`; see `rlbridge.evaluators.evaluator`."""
        began = monotonic()
        try:
            fields = self._row.model_validate(row)
        except ValidationError as error:
            return InvalidReward(FailureClass.BAD_ROW, _row_problem(error, row))
        text = after_last(answer_text(response), self._options.after)
        try:
            grade = await self._judge(fields, text)
        except UngradableError as error:
            return InvalidReward(
                error.failure, str(error), attempts=1, latency_s=monotonic() - began
            )
        parts = {"correct": float(grade.reward == 1.0), "answered": float(bool(grade.extracted))}
        return ValidReward(
            grade.reward,
            {**parts, **grade.components},
            latency_s=monotonic() - began,
            extracted=grade.extracted,
        )

    async def aclose(self) -> None:
        """Give back processes and connections."""
        await self._aclose()

    async def _judge(self, fields: RowT, text: str) -> Grade:
        if self._grade_async is not None:
            return await self._grade_async(fields, text)
        assert self._grade is not None  # noqa: S101 (one of the two is given)
        if len(text) > LONG_CHARS:
            return await asyncio.to_thread(self._grade, fields, text)
        return self._grade(fields, text)


def _row_problem(error: ValidationError, row: object) -> str:
    """Every mistake by its path; a missing field with the row's nearest name."""
    known = [str(name) for name in row] if isinstance(row, Mapping) else []
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in item["loc"])
        line = f"$.{path}: {item['msg']}" if path else f"$: {item['msg']}"
        guess = nearest(path, known) if item["type"] == "missing" else None
        lines.append(f"{line} (the row has {guess!r})" if guess else line)
    return "; ".join(lines)
