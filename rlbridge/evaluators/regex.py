"""Answers that match a regular expression. Refuses patterns that match the empty text.

Python's `re` backtracks, and a policy chooses the text it backtracks over: an innocent pattern
may take years. So it runs in a process of its own, with an end.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import field_validator

from rlbridge.errors import ConfigError
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.evaluators.local import (
    AnswerOptions,
    Grade,
    LocalEvaluator,
    RowFields,
    UngradableError,
)
from rlbridge.evaluators.workers import WorkerLimits, Workers


class RegexOptions(AnswerOptions, WorkerLimits):
    """How to match."""

    pattern: str | None = None
    """The pattern for all rows; a row's own `pattern` comes first."""
    match: Literal["search", "full"] = "search"
    """`search`: anywhere in the answer; `full`: all of it."""
    ignore_case: bool = False
    """Match without case."""
    group: str | None = None
    """This named group of the last match must equal the row's `expected_answer`."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return value if value is None else _checked(value)


class RegexRow(RowFields):
    """A row with a pattern, or for the pattern of the options."""

    pattern: str | None = None
    """What the answer must match; needed where the options have no pattern."""
    expected_answer: str | None = None
    """What the group of the options' `group` must hold."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return value if value is None else _checked(value)


def make(options: Mapping[str, Any]) -> Evaluator:
    """The evaluator with `RegexOptions`."""
    how = RegexOptions.parse(options, where="regex")
    if how.group and how.pattern and how.group not in re.compile(how.pattern).groupindex:
        raise ConfigError(f"regex: group: the pattern has no group named {how.group!r}")
    workers = Workers(f"{__name__}:matched", how)

    async def grade(row: RegexRow, text: str) -> Grade:
        pattern = how.pattern if row.pattern is None else row.pattern
        if pattern is None:
            raise UngradableError("$.pattern is missing, and the options have none")
        if how.group is not None and row.expected_answer is None:
            raise UngradableError(
                "$.expected_answer is missing; the options compare a group with it"
            )
        flags = re.IGNORECASE if how.ignore_case else 0
        found = await workers.call(
            pattern=pattern, text=text, full=how.match == "full", flags=int(flags), group=how.group
        )
        right = found is not None if how.group is None else found == row.expected_answer
        return Grade(float(right), found)

    return LocalEvaluator(RegexRow, how, grade_async=grade, aclose=workers.aclose)


def matched(pattern: str, text: str, full: bool, flags: int, group: str | None) -> str | None:
    """What the last match holds, or its group; None if there is no match. Runs in a worker."""
    compiled = re.compile(pattern, flags)
    if group is not None and group not in compiled.groupindex:
        raise UngradableError(f"$.pattern has no group named {group!r}")
    last = compiled.fullmatch(text) if full else None
    if not full:
        for last in compiled.finditer(text):  # noqa: B007 (the last one is wanted)
            pass
    if last is None:
        return None
    found = last[0] if group is None else last[group]
    return None if found is None else found[:1000]


def _checked(pattern: str) -> str:
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if compiled.fullmatch(""):
        raise ValueError(f"{pattern!r} matches an empty answer: everything would be right")
    return pattern


SPEC: Final = EvaluatorSpec(
    name="regex",
    summary="the answer matches a regular expression, under a time limit",
    make=make,
    row=RegexRow,
    options=RegexOptions,
)
