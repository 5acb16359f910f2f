"""Converted rows on disk, and what is needed to choose among them in memory: 48 bytes a row.

A row is written once, as it comes; prompts are grouped, duplicates found and pairs made on the
index alone, so that a million rows take some 50 MB whatever they hold.
"""

import errno
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rlbridge.errors import RunError

_BUFFER = 1 << 20
_PACK = struct.Struct("<QQdqii").pack
_COLUMNS = np.dtype(
    [("prompt", "<u8"), ("content", "<u8"), ("reward", "<f8"), ("start", "<i8"), ("head", "<i4"),
     ("plain", "<i4")]
)  # fmt: skip


class Piece(NamedTuple):
    """One row, converted.

    Attributes:
        prompt: what makes two prompts the same one.
        head: bytes of the record; for pairs the prompt as it is written.
        body: bytes of the record behind `head`; a whole line, or a completion.
        plain: whether the prompt is a user's one message, of text.
    """

    prompt: bytes
    head: bytes
    body: bytes
    plain: bool = False


class Index(NamedTuple):
    """Columns of the rows in a spool, all of length n and in the order they were added.

    Attributes:
        prompt: uint64, a hash of the prompt; lasting or not, as the batches were asked.
        content: uint64, a hash of prompt and body; equal rows are duplicates. It is another one in
            each run, so it may say nothing but which rows are equal.
        reward: float64; NaN where there is none and none is needed.
        start: int64, the record's first byte.
        head: int32, bytes of its head.
        plain: int32, whether its prompt is a user's one message, of text.
        stop: int64, its end.
    """

    prompt: npt.NDArray[np.uint64]
    content: npt.NDArray[np.uint64]
    reward: npt.NDArray[np.float64]
    start: npt.NDArray[np.int64]
    head: npt.NDArray[np.int32]
    plain: npt.NDArray[np.int32]
    stop: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompt)


class Batch:
    """Converted rows in memory, on their way into a spool. It pickles.

    Args:
        lasting: hash the same in every process, which a split needs, and work in several; otherwise
            the hashes are good for this process only, and cheaper.

    Attributes:
        size: bytes of the records.
    """

    def __init__(self, *, lasting: bool) -> None:
        self.size = 0
        self.parts: list[bytes] = []
        self.columns = bytearray()
        self._hash = digest if lasting else hash_once
        self._prompt, self._hashed = b"", self._hash(b"")

    def add(self, piece: Piece, reward: float) -> None:
        """Append a row."""
        prompt, head, body, plain = piece
        if prompt != self._prompt:  # rollouts of a prompt often lie together
            self._prompt, self._hashed = prompt, self._hash(prompt)
        size = self.size
        self.columns += _PACK(self._hashed, self._hash(body), reward, size, len(head), plain)
        self.size = size + len(head) + len(body)
        if head:
            self.parts.append(head)
        self.parts.append(body)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"parts": [b"".join(self.parts)]}


class Spool:
    """A file of converted rows beside the output, gone when it is closed.

    Args:
        folder: where the file is made, the output's.
    """

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(prefix=".rlbridge-", suffix=".partial", dir=folder)
        self.path = Path(name)
        self._file = os.fdopen(handle, "w+b", buffering=0)
        self._size = 0
        self._columns = bytearray()

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

    def append(self, batch: Batch) -> None:
        """Append a batch's rows."""
        columns = np.frombuffer(batch.columns, dtype=_COLUMNS).copy()
        columns["start"] += self._size
        self._columns += columns.tobytes()
        self._size += batch.size
        text = memoryview(b"".join(batch.parts))
        while text:  # a raw file may take less than it is given
            text = text[self._file.write(text) :]

    def index(self) -> Index:
        """The columns; nothing can be added afterwards."""
        columns = np.frombuffer(self._columns, dtype=_COLUMNS)
        start = columns["start"]
        return Index(
            columns["prompt"],
            columns["prompt"] * np.uint64(0x9E3779B97F4A7C15) ^ columns["content"],
            columns["reward"],
            start,
            columns["head"],
            columns["plain"],
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


def hash_once(data: bytes) -> int:
    """A 64-bit hash that is another one in each process; six times as fast as `digest`."""
    return hash(data) & 0xFFFF_FFFF_FFFF_FFFF


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
