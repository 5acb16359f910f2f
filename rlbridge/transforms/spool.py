"""Converted rows on disk, and what is needed to choose among them in memory: 44 bytes a row.

A row is written once, as it comes; prompts are grouped, duplicates found and pairs made on the
index alone, so that a million rows take some 50 MB whatever they hold.
"""

import errno
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rlbridge.errors import RunError

_BUFFER = 1 << 20


class Piece(NamedTuple):
    """One row, converted.

    Attributes:
        prompt: what makes two prompts the same one.
        head: bytes of the record; for pairs the prompt as it is written.
        body: bytes of the record behind `head`; a whole line, or a completion.
    """

    prompt: bytes
    head: bytes
    body: bytes


class Index(NamedTuple):
    """Columns of the rows in a spool, all of length n and in the order they were added.

    Attributes:
        prompt: uint64, a hash of the prompt.
        content: uint64, a hash of prompt and body; equal rows are duplicates.
        reward: float64; NaN where there is none and none is needed.
        start: int64, the record's first byte.
        head: int64, bytes of its head.
        stop: int64, its end.
    """

    prompt: npt.NDArray[np.uint64]
    content: npt.NDArray[np.uint64]
    reward: npt.NDArray[np.float64]
    start: npt.NDArray[np.int64]
    head: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt)


class Spool:
    """A file of converted rows beside the output, gone when it is closed.

    Args:
        folder: where the file is made; the output's, so that it may become the output.
    """

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(prefix=".rlbridge-", suffix=".partial", dir=folder)
        self.path = Path(name)
        self._file = os.fdopen(handle, "w+b", buffering=_BUFFER)
        self._size = 0
        self._prompt, self._content, self._reward = array("Q"), array("Q"), array("d")
        self._start, self._head = array("q"), array("q")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError:  # the disk is full, which is being reported already
            if error is None:
                raise
        finally:
            self.path.unlink(missing_ok=True)

    def add(self, piece: Piece, reward: float) -> None:
        """Append a row."""
        prompt, head, body = piece
        self._prompt.append(digest(prompt))
        self._content.append(digest(prompt + body))
        self._reward.append(reward)
        self._start.append(self._size)
        self._head.append(len(head))
        self._size += len(head) + len(body)
        if head:
            self._file.write(head)
        self._file.write(body)

    def index(self) -> Index:
        """The columns; nothing can be added afterwards."""
        self._file.flush()
        start = np.frombuffer(self._start, dtype=np.int64)
        return Index(
            np.frombuffer(self._prompt, dtype=np.uint64),
            np.frombuffer(self._content, dtype=np.uint64),
            np.frombuffer(self._reward, dtype=np.float64),
            start,
            np.frombuffer(self._head, dtype=np.int64),
            np.append(start[1:], self._size),
        )

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of a record, or of records in a row."""
        return os.pread(self._file.fileno(), stop - start, start)

    def runs(self, index: Index, chosen: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The chosen records in order, neighbours in one piece of a megabyte or so."""
        if not len(chosen):
            return
        starts, stops = index.start[chosen], index.stop[chosen]
        gaps = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        for first, last in zip(
            np.append(0, gaps).tolist(), np.append(gaps, len(chosen)).tolist(), strict=True
        ):
            at, end = int(starts[first]), int(stops[last - 1])
            while at < end:
                piece = self.read(at, min(end, at + _BUFFER))
                at += len(piece)
                yield piece


def digest(data: bytes) -> int:
    """A 64-bit hash that is the same in every run and on every machine."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error that says so and what to do.

    Raises:
        RunError: the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free
        raise RunError(
            f"the disk of {folder} is full ({free / 1e6:.0f} MB are free now that the unfinished "
            "files are gone; earlier outputs are as they were). Free some space, about the size "
            "of the input twice over, and run the same command again: it gives the same files"
        ) from error
