"""Converted rows on disk, and what is needed to choose among them in memory: 52 bytes a row.

A row is written once, as it comes; prompts are grouped, duplicates found and pairs made on the
index alone, so that a million rows take some 50 MB whatever they hold. Each process that converts
writes a file of its own, so that rows needn't pass from one to the other.
"""

import errno
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib.util import source_hash
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rlbridge.errors import RunError

_BUFFER = 1 << 20
_WRITTEN_AT_ONCE = 1 << 17
_SPARSE = 4  # reading four bytes for one that is wanted takes less than a call for each piece
# A row's place is one number: its file's in the high bits, its first byte in the low ones.
_FILE_BITS = 40
_WITHIN_FILE = (1 << _FILE_BITS) - 1
_PACK = struct.Struct("<8s8sdqqiii").pack
_COLUMNS = np.dtype(
    [("prompt", "<u8"), ("content", "<u8"), ("reward", "<f8"), ("start", "<i8"), ("head", "<i8"),
     ("size", "<i4"), ("cut", "<i4"), ("plain", "<i4")]
)  # fmt: skip


Places = npt.NDArray[np.int64]


# One row, converted (a tuple, since it is made once a row):
# - what makes two prompts the same one; for pairs as it is written;
# - a whole line; for pairs the completion as it is written;
# - whether the prompt is a user's one message, of text; only pairs ask.
Piece = tuple[bytes, bytes, bool]


class Index(NamedTuple):
    """Columns of the rows in a spool, all of length n and in the order they were added.

    Attributes:
        prompt: uint64, a hash of the prompt; lasting or not, as the batches were asked.
        content: uint64, a hash of prompt and body; equal rows are duplicates. It is no lasting one.
        reward: float64; NaN where there is none and none is needed.
        start: int64, the body's place; what lies behind it in the same file begins where it ends.
        size: int32, bytes of the body.
        head: int64, the prompt's place, where prompts are kept.
        cut: int32, bytes of the prompt there; else 0.
        plain: int32, whether its prompt is a user's one message, of text.
    """

    prompt: npt.NDArray[np.uint64]
    content: npt.NDArray[np.uint64]
    reward: npt.NDArray[np.float64]
    start: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    head: npt.NDArray[np.int64]
    cut: npt.NDArray[np.int32]
    plain: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.prompt)


class Stretch(NamedTuple):
    """Rows that lie together in a file of the spool.

    Attributes:
        file: its name.
        start: their first byte in it.
        columns: of `Index`, packed; places count from `start`.
    """

    file: str
    start: int
    columns: bytes


class Batch:
    """Rows on their way into a file of a spool; their texts don't wait in memory.

    Args:
        file: where they go.
        lasting: give prompts a hash that stays the same, which a split needs; otherwise a cheaper
            one, the same wherever this Python runs.
        prompts: keep the prompts too, apart from the bodies; one that rows share once.

    Attributes:
        size: bytes of the records.
    """

    __slots__ = ("_columns", "_cut", "_file", "_hash", "_hashed", "_head", "_keeps", "_prompt",
                 "_write", "size")  # fmt: skip

    def __init__(self, file: "SpoolFile", *, lasting: bool, prompts: bool) -> None:
        self.size = 0
        self._file, self._write = file, file.write
        self._keeps = prompts
        self._columns = bytearray()
        self._hash = _lasting_hash if lasting else source_hash
        self._prompt, self._hashed = b"", self._hash(b"")
        self._head = self._cut = 0

    def add(self, piece: Piece, reward: float) -> None:
        """Append a row."""
        prompt, body, plain = piece
        if prompt != self._prompt:  # rollouts of a prompt often lie together
            self._prompt, self._hashed = prompt, self._hash(prompt)
            if self._keeps:
                self._head, self._cut = self.size, len(prompt)
                self._write(prompt)
                self.size += len(prompt)
        size = len(body)
        self._columns += _PACK(
            self._hashed, source_hash(body), reward, self.size, self._head, size, self._cut, plain
        )
        self._write(body)
        self.size += size

    def finished(self) -> Stretch:
        """The rows, which are in the file now."""
        return Stretch(self._file.name, self._file.end(), bytes(self._columns))


class SpoolFile:
    """A file that one process fills.

    Args:
        folder: the spool's.
        name: no other process's.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        # Larger buffers, or lists of texts, fall out of the processor's caches: 1 us a row.
        self._file = (folder / name).open("xb", buffering=_WRITTEN_AT_ONCE)
        self._begin = 0
        self.write = self._file.write

    def end(self) -> int:
        """End a stretch that others may read now; where it begins comes back."""
        self._file.flush()
        begin, self._begin = self._begin, self._file.tell()
        return begin

    def close(self) -> None:
        """Close it; the rows stay as long as the spool."""
        self._file.close()


class Spool:
    """Files of converted rows in a folder beside the output, gone when it is closed.

    Args:
        beside: where the folder is made, the output's.
    """

    def __init__(self, beside: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=".rlbridge-", suffix=".partial", dir=beside))
        self._files: dict[str, int] = {}
        self._handles: list[BinaryIO] = []
        self._columns = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, stretch: Stretch) -> None:
        """Take rows in that lie in a file of this spool."""
        number = self._files.get(stretch.file)
        if number is None:
            number = self._files[stretch.file] = len(self._files)
            self._handles.append((self.folder / stretch.file).open("rb", buffering=0))
        columns = np.frombuffer(stretch.columns, dtype=_COLUMNS).copy()
        for name in ("start", "head"):
            columns[name] += (number << _FILE_BITS) + stretch.start
        self._columns += columns.tobytes()

    def index(self) -> Index:
        """The columns; nothing can be added afterwards."""
        columns = np.frombuffer(self._columns, dtype=_COLUMNS)
        return Index(
            columns["prompt"],
            columns["prompt"] * np.uint64(0x9E3779B97F4A7C15) ^ columns["content"],
            columns["reward"],
            columns["start"],
            columns["size"],
            columns["head"],
            columns["cut"],
            columns["plain"],
        )

    def pieces(self, starts: Places, sizes: Places) -> Iterator[bytes]:
        """Bytes at these places, in this order; what lies close together is read at once.

        Args:
            starts: int64 [n].
            sizes: int64 [n], bytes at each.
        """
        for block in _blocks(sizes):
            begin, cut = starts[block], sizes[block]
            first = int(begin.min())
            span = int((begin + cut).max()) - first
            if span <= _SPARSE * int(cut.sum()):
                text, at = self._read(first, span), (begin - first).tolist()
                yield from (text[a : a + n] for a, n in zip(at, cut.tolist(), strict=True))
            else:
                yield from map(self._read, begin.tolist(), cut.tolist())

    def runs(self, index: Index, chosen: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The chosen records in order, neighbours in one piece of a megabyte or so."""
        starts, sizes = index.start[chosen], index.size[chosen].astype(np.int64)
        for block in _blocks(sizes):
            begin, cut = starts[block], sizes[block]
            behind = np.flatnonzero(begin[1:] != begin[:-1] + cut[:-1]) + 1
            if not len(behind):
                yield self._read(int(begin[0]), int(cut.sum()))
                continue
            heads = np.append(0, behind)
            yield b"".join(self.pieces(begin[heads], np.add.reduceat(cut, heads)))

    def _read(self, start: int, size: int) -> bytes:
        handle = self._handles[start >> _FILE_BITS]
        return os.pread(handle.fileno(), size, start & _WITHIN_FILE)


def _blocks(sizes: Places) -> Iterator[slice]:
    """Slices of successive pieces: a megabyte together, or one that is larger and a few more."""
    if not len(sizes):
        return
    number = np.cumsum(sizes, dtype=np.int64) // _BUFFER
    bounds = np.append(np.flatnonzero(np.diff(number, prepend=-1)), len(sizes)).tolist()
    yield from map(slice, bounds[:-1], bounds[1:])


def digest(data: bytes) -> int:
    """A 64-bit hash that is the same in every run and on every machine."""
    return int.from_bytes(_lasting_hash(data), "little")


def _lasting_hash(data: bytes) -> bytes:
    """Of 8 bytes; four times as slow as `source_hash`, SipHash, which lasts as long as a Python."""
    return blake2b(data, digest_size=8).digest()


def is_full_disk(error: OSError) -> bool:
    """Whether it says that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error that says so and what to do.

    Raises:
        RunError: the disk or the quota is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(folder).free
        raise RunError(
            f"the disk of {folder} is full ({free / 1e6:.0f} MB are free now that the unfinished "
            "files are gone; earlier outputs are as they were). Free some space, about the size "
            "of the input twice over, and run the same command again: it gives the same files"
        ) from error
