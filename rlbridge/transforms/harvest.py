"""Rows read and converted, in this process or in several; the same either way.

Several read byte ranges of plain JSON lines; what they give comes back in the order of the file.
Refuses to go on without a process that ended, since its rows would be missing.
"""

import io
import multiprocessing
import os
import signal
import threading
from array import array
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from rlbridge.errors import ConfigError, RunError
from rlbridge.transforms.conversation import reward_of, why_invalid
from rlbridge.transforms.reading import Line, Reader, Row
from rlbridge.transforms.rejects import BadRowError, Rejects
from rlbridge.transforms.selection import Selection
from rlbridge.transforms.spool import Batch, Piece, SpoolFile, Stretch, is_full_disk

_BATCH_BYTES = 1 << 20
_RANGE_BYTES = 4 << 20
# Starting a process takes some 0.3 s, in which one process converts 50 MB.
_WORTH_BYTES = 256 << 20
_NO_ROWS = Stretch("", 0, b"")
_MOST_WORKERS = 4  # beyond that, writing and hashing the input take longer than converting


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
    """

    convert: Convert
    selection: Selection
    needs_reward: bool
    lasting: bool
    keeps_prompts: bool


class BadLine(NamedTuple):
    """A line for the rejects: `Rejects.add`'s arguments, but for the file."""

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


class Range(NamedTuple):
    """Whole lines of a file: its bytes from `begin` to `end`, which may lie behind the last one."""

    path: Path
    begin: int
    end: int


Progress = Callable[[int], None]


def worthwhile_workers(inputs: Iterable[Path]) -> int:
    """How many processes convert these files fastest: the CPUs at hand, 1 for small or packed."""
    paths = list(inputs)
    if not all(map(_is_plain, paths)) or sum(p.stat().st_size for p in paths) < _WORTH_BYTES:
        return 1
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))


def harvested(
    inputs: tuple[Path, ...],
    rule: Rule,
    folder: Path,
    rejects: Rejects,
    progress: Progress | None,
    workers: int,
) -> Generator[Harvest, None, None]:
    """Read and convert every row, in order.

    Args:
        inputs: rollout files.
        rule: what becomes of a row.
        folder: the spool's, where converted rows go.
        rejects: takes bad rows.
        progress: called with the bytes read since the last call.
        workers: processes. Where a file is packed there is one, whatever this says.

    Raises:
        ConfigError: a file is missing or unreadable, or too many lines are bad.
        RunError: a process ended.
    """
    if workers > 1 and all(map(_is_plain, inputs)):
        yield from _in_workers(inputs, rule, folder, rejects, progress, workers)
        return
    reader = Reader(inputs, rejects=rejects, progress=progress)
    rows, before, full = iter(reader), 0, True
    with closing(SpoolFile(folder, "rows")) as file:
        while full:
            harvest, batch = Harvest(), Batch(lasting=rule.lasting, prompts=rule.keeps_prompts)
            full = _fill(harvest, batch, rows, reader, rule, _BATCH_BYTES)
            harvest.stretch = batch.write(file)
            harvest.lines, before = reader.lines - before, reader.lines
            yield harvest


def _fill(
    harvest: Harvest,
    batch: Batch,
    rows: Iterable[Line],
    reader: Reader,
    rule: Rule,
    limit: float,
) -> bool:
    """Convert rows until their records have more bytes than the limit, or until there are none."""
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
            add(convert(row), reward)
        except BadRowError as error:
            reader.reject(line, error)
        except SkippedRowError as error:
            harvest.skipped[str(error)] += 1
        if batch.size > limit:
            return True
    return False


def _in_workers(
    inputs: tuple[Path, ...],
    rule: Rule,
    folder: Path,
    rejects: Rejects,
    progress: Progress | None,
    workers: int,
) -> Iterator[Harvest]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        lines = 0
        for span, harvest in _results(pool, inputs, rule, folder, workers):
            if not span.begin:
                breaks = 0
            for bad in harvest.bad:
                number, total = breaks + bad.number, lines + bad.lines
                rejects.add(span.path, number, bad.offset, bad.error, bad.text, lines=total)
            lines, breaks = lines + harvest.lines, breaks + harvest.breaks
            if progress is not None:
                progress(min(span.end, span.path.stat().st_size) - span.begin)
            yield harvest
    except BrokenProcessPool as error:
        raise RunError(
            "a process that converts rows ended, killed perhaps for want of memory; "
            "run the same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor, inputs: tuple[Path, ...], rule: Rule, folder: Path, workers: int
) -> Iterator[tuple[Range, Harvest]]:
    """Ranges and what they gave, in order; a few more are under way than there are workers."""
    waiting: deque[tuple[Range, Future[Harvest]]] = deque()
    path = Path()
    try:
        for path in inputs:
            for span in _ranges(path, workers):
                with _sigint_blocked():  # this may start a worker, which inherits it
                    waiting.append((span, pool.submit(_harvest_range, rule, folder, span)))
                if len(waiting) > workers + 2:
                    span, future = waiting.popleft()
                    yield span, future.result()
        while waiting:
            span, future = waiting.popleft()
            yield span, future.result()
    except FileNotFoundError as error:
        raise ConfigError(f"no file {error.filename}") from error
    except OSError as error:
        if is_full_disk(error):
            raise
        raise ConfigError(f"can't read {error.filename or path}: {error}") from error


def _ranges(path: Path, workers: int) -> Iterator[Range]:
    """Ranges of a file, of whole lines; small files are spread over the workers too."""
    size = path.stat().st_size
    step = min(_RANGE_BYTES, size // (4 * workers))
    begin = 0
    with path.open("rb") as file:
        while begin < size:
            file.seek(begin + step)
            file.readline()
            yield Range(path, begin, file.tell())
            begin = file.tell()


def _harvest_range(rule: Rule, folder: Path, span: Range) -> Harvest:
    """In a worker: convert one range."""
    with span.path.open("rb") as file:
        file.seek(span.begin)
        text = file.read(span.end - span.begin)
    noted = _Noted()
    reader = Reader((), rejects=noted)
    harvest = Harvest(breaks=text.count(b"\n"), bad=noted.bad)
    batch = Batch(lasting=rule.lasting, prompts=rule.keeps_prompts)
    rows = reader.parse(io.BytesIO(text), span.path, span.begin)
    _fill(harvest, batch, rows, reader, rule, float("inf"))
    harvest.stretch = batch.write(_own_file(folder))
    harvest.lines = reader.lines
    return harvest


@cache
def _own_file(folder: Path) -> SpoolFile:
    """In a worker: the file that it alone fills."""
    return SpoolFile(folder, f"rows-{os.getpid()}")


class _Noted(Rejects):
    """Notes bad lines for the process that counts those of all ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[BadLine] = []

    def add(
        self, file: Path, line: int, offset: int, error: BadRowError, text: bytes, *, lines: int
    ) -> None:
        self.bad.append(BadLine(line, offset, error, text, lines))


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Ctrl-C is the parent's to handle: workers begin with it blocked, from their first line on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """A worker ends when its parent is gone, even if that was killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _is_plain(path: Path) -> bool:
    return path.suffix not in (".gz", ".zst", ".parquet", ".pq")
