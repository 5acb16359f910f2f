"""Rows read and converted: what becomes of each, and what some lines gave together.

A row that can't be used goes to the rejects; one without a valid reward is counted. Refuses
nothing else.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson

from rlbridge.transforms.conversation import reward_of, why_invalid
from rlbridge.transforms.reading import Line, Reader, Row
from rlbridge.transforms.rejects import BadRowError, Rejects
from rlbridge.transforms.selection import Selection
from rlbridge.transforms.spool import Batch, Piece, SpoolFile, Stretch

_BATCH_BYTES = 1 << 20
_NO_ROWS = Stretch("", 0, b"")


class SkippedRowError(Exception):
    """A row that is fine and has nothing for this transform; its one argument says why."""


class Convert(Protocol):
    """Makes a record of a row; pickles unless the job numbers rows."""

    def __call__(self, row: Row, /) -> Piece:
        """The record.

        Raises:
            BadRowError: the row can't be used; it goes to the rejects.
            SkippedRowError: the row has nothing for this transform; it is counted.
        """


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a row.

    Attributes:
        convert: row to record.
        selection: its reward thresholds leave rows out unconverted.
        needs_reward: whether a row without a valid reward is left out even without thresholds.
        lasting: hash prompts the same in every run.
        keeps_prompts: whether prompts are wanted later, as they are written.
        load: reads a line, with the fields that `convert` looks at.
    """

    convert: Convert
    selection: Selection
    needs_reward: bool
    lasting: bool
    keeps_prompts: bool
    load: Callable[[bytes], Any]


class BadLine(NamedTuple):
    """A line for the rejects: `Rejects.add`'s arguments."""

    file: Path
    number: int
    offset: int
    error: BadRowError
    text: bytes
    lines: int


@dataclass(slots=True)
class Harvest:
    """What some lines gave.

    Attributes:
        stretch: where the converted rows are.
        lines: lines read, bad ones included and blank ones not.
        rewards: float64, the valid rewards of all rows.
        invalid: rows without a valid reward, by reason.
        skipped: rows with nothing for this transform, by reason.
        outside: rows that the reward thresholds left out.
        breaks: of a range, its line ends; line numbers go on from there.
        bad: of a range, its bad lines, numbered from 1 within it.
    """

    stretch: Stretch = _NO_ROWS
    lines: int = 0
    rewards: "array[float]" = field(default_factory=lambda: array("d"))
    invalid: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    breaks: int = 0
    bad: list[BadLine] = field(default_factory=list)


Progress = Callable[[int], None]


def harvested(
    inputs: tuple[Path, ...],
    rule: Rule,
    folder: Path,
    rejects: Rejects,
    progress: Progress | None,
) -> Generator[Harvest, None, None]:
    """Read and convert every row, in order, in this process.

    Args:
        inputs: rollout files.
        rule: what becomes of a row.
        folder: the spool's, where converted rows go.
        rejects: takes bad rows.
        progress: called with the bytes read since the last call.

    Raises:
        ConfigError: a file is missing or unreadable, or too many lines are bad.
    """
    reader = Reader(inputs, rejects=rejects, progress=progress, load=rule.load)
    rows, before, full = iter(reader), 0, True
    with closing(SpoolFile(folder, "rows")) as file:
        while full:
            harvest = Harvest()
            batch = Batch(file, lasting=rule.lasting, prompts=rule.keeps_prompts)
            full = fill(harvest, batch, rows, reader, rule, _BATCH_BYTES)
            harvest.stretch = batch.finished()
            harvest.lines, before = reader.lines - before, reader.lines
            yield harvest


def fill(
    harvest: Harvest,
    batch: Batch,
    rows: Iterable[Line],
    reader: Reader,
    rule: Rule,
    limit: float,
) -> bool:
    """Convert rows until their records have more bytes than the limit, or until there are none.

    Args:
        harvest: takes the counts.
        batch: takes the records.
        rows: the rows; some may be left.
        reader: which reads them, and takes those that can't be used.
        rule: what becomes of a row.
        limit: bytes.

    Returns:
        Whether there may be more rows.
    """
    convert, add, wants, rewarded = rule.convert, batch.add, rule.selection.wants, harvest.rewards
    filters = rule.selection.min_reward is not None or rule.selection.max_reward is not None
    optional = not (filters or rule.needs_reward)
    nan = float("nan")
    for line in rows:
        row = line.row
        reward = reward_of(row)
        if reward is None:
            harvest.invalid[why_invalid(row)] += 1
            if not optional:
                continue
            reward = nan
        else:
            rewarded.append(reward)
            if filters and not wants(reward):
                harvest.outside += 1
                continue
        try:
            try:
                piece = convert(row)
            except (BadRowError, orjson.JSONEncodeError):
                # What is wrong is said of all fields, and integers beyond 64 bits are floats there.
                piece = convert(reader.whole(line))
            add(piece, reward)
        except BadRowError as error:
            reader.reject(line, error)
        except SkippedRowError as error:
            harvest.skipped[str(error)] += 1
        if batch.size > limit:
            return True
    return False
