"""Rows converted in several processes, each a byte range of plain JSON lines at a time.

What they give comes back in the order of the file, the same as from one process. Refuses to go on
without a process that ended, since its rows would be missing.
"""

import io
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rlbridge.errors import ConfigError, RunError
from rlbridge.transforms.harvest import BadLine, Harvest, Progress, Rule, fill
from rlbridge.transforms.reading import Reader
from rlbridge.transforms.rejects import BadRowError, Rejects
from rlbridge.transforms.spool import Batch, SpoolFile, is_full_disk

_RANGE_BYTES = 4 << 20
# Starting a process takes some 0.3 s, in which one process converts 50 MB.
_WORTH_BYTES = 256 << 20
_MOST_WORKERS = 4  # beyond that, writing and hashing the input take longer than converting


class Range(NamedTuple):
    """Whole lines of a file: its bytes from `begin` to `end`, which may lie behind the last one."""

    path: Path
    begin: int
    end: int


def worthwhile_workers(inputs: Iterable[Path]) -> int:
    """How many processes convert these files fastest: the CPUs at hand, 1 for small or packed."""
    paths = list(inputs)
    if not all(map(is_plain, paths)) or sum(p.stat().st_size for p in paths) < _WORTH_BYTES:
        return 1
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)))


def is_plain(path: Path) -> bool:
    """Whether byte ranges of the file can be read."""
    return path.suffix not in (".gz", ".zst", ".parquet", ".pq")


def harvested_in_workers(
    inputs: tuple[Path, ...],
    rule: Rule,
    folder: Path,
    rejects: Rejects,
    progress: Progress | None,
    workers: int,
) -> Generator[Harvest, None, None]:
    """Read and convert every row of plain JSON lines, in order, in several processes.

    Args:
        inputs: rollout files.
        rule: what becomes of a row.
        folder: the spool's, where converted rows go.
        rejects: takes bad rows.
        progress: called with the bytes read since the last call.
        workers: processes.

    Raises:
        ConfigError: a file is missing or unreadable, or too many lines are bad.
        RunError: a process ended.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        lines = 0
        for span, harvest in _results(pool, inputs, rule, folder, workers):
            if not span.begin:
                breaks = 0
            for bad in harvest.bad:
                number, total = breaks + bad.number, lines + bad.lines
                rejects.add(bad.file, number, bad.offset, bad.error, bad.text, lines=total)
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
    reader = Reader((), rejects=noted, load=rule.load)
    harvest = Harvest(breaks=text.count(b"\n"), bad=noted.bad)
    batch = Batch(_own_file(folder), lasting=rule.lasting, prompts=rule.keeps_prompts)
    rows = reader.parse(io.BytesIO(text), span.path, span.begin)
    fill(harvest, batch, rows, reader, rule, float("inf"))
    harvest.stretch = batch.finished()
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
        self.bad.append(BadLine(file, line, offset, error, text, lines))


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
