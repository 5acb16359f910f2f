"""Rows of rollout files, one at a time: JSON lines, gzip, zstd and Parquet. Refuses no other line.

Memory stays constant: one line, or one Parquet batch, at a time. A line that is no JSON object
goes to the rejects with its place and the work goes on. What a row means is `rows`' business.
"""

import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import orjson

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.transforms.rejects import BadRowError, Rejects

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Row = dict[str, Any]

_BUFFER = 1 << 20
_PARQUET_ROWS = 64
_BOM = b"\xef\xbb\xbf"
# Columns that a Parquet file may hold as JSON text, since their values have no common schema.
_JSON_COLUMNS = frozenset(
    {wire.RESPONSES_CREATE_PARAMS, wire.RESPONSE, wire.AGENT_REF, wire.REWARD_COMPONENTS, "output"}
)


class Line(NamedTuple):
    """One row and its place.

    Attributes:
        row: the JSON object, or what the reader's `load` takes of it.
        path: the file.
        number: the line's number, from 1; of a Parquet file the row's.
        offset: the line's first byte in the decompressed file; -1 in a Parquet file.
        text: the line; empty in a Parquet file.
    """

    row: Row
    path: Path
    number: int
    offset: int
    text: bytes

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.path}:{self.number}"


class Reader:
    """Reads the rows of files in order.

    Args:
        paths: the files; the suffix says how they are packed (`.gz`, `.zst`, `.parquet`).
        rejects: takes the lines that are no rows; by default none may be.
        progress: called now and then with the bytes read since the last call, of the files as
            they lie on disk.
        load: reads a line; it may leave fields out, and raises what `orjson.loads` does.

    Attributes:
        lines: lines read so far, bad ones included and blank ones not.
        bytes_read: of the files as they lie on disk.

    Raises:
        ConfigError: from iterating; a file is missing or unreadable, or too many lines are bad.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        *,
        rejects: Rejects | None = None,
        progress: Callable[[int], None] | None = None,
        load: Callable[[bytes], Any] = orjson.loads,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.rejects = rejects if rejects is not None else Rejects(allowed_share=0.0)
        self.lines = 0
        self.bytes_read = 0
        self._progress = progress
        self._load = load

    def __iter__(self) -> Iterator[Line]:
        for path in self.paths:
            try:
                yield from self._parquet(path) if _is_parquet(path) else self._lines(path)
            except FileNotFoundError as error:
                raise ConfigError(f"no file {path}") from error
            except (OSError, EOFError) as error:  # a gzip file cut short is an EOFError
                raise ConfigError(f"can't read {path} after line {self.lines}: {error}") from error
        self.rejects.finish(self.lines)

    def whole(self, line: Line) -> Row:
        """A line's row with all of its fields.

        Raises:
            BadRowError: what was left out can't be read.
        """
        if not line.text:
            return line.row
        try:
            return cast("Row", orjson.loads(line.text))
        except orjson.JSONDecodeError as error:
            return _second_try(line.text, error)

    def reject(self, line: Line, error: BadRowError) -> None:
        """Put a row aside that was read but can't be used."""
        text = line.text or orjson.dumps(line.row, default=str)
        self.rejects.add(line.path, line.number, line.offset, error, text, lines=self.lines)

    def _lines(self, path: Path) -> Iterator[Line]:
        with io.BufferedReader(_Watched(path, self._report), _BUFFER) as packed:
            yield from self.parse(open_unpacked(path, packed), path)

    def parse(self, stream: Iterable[bytes], path: Path, offset: int = 0) -> Iterator[Line]:
        """The rows of some lines of a file.

        Args:
            stream: the lines.
            path: the file.
            offset: the first line's first byte in it. Line numbers begin at 1 all the same.
        """
        load = self._load
        made = tuple.__new__  # half the time of Line(...), once a line
        number = 0
        for text in stream:
            number += 1
            start, offset = offset, offset + len(text)
            if not start and text.startswith(_BOM):
                text = text[len(_BOM) :]
            try:
                row = load(text)
                self.lines += 1
                if type(row) is not dict:
                    raise _no_object(row)
            except orjson.JSONDecodeError as error:
                if not text.strip():
                    continue
                self.lines += 1
                try:
                    row = _second_try(text, error)
                except BadRowError as bad:
                    self._bad(path, number, start, text, bad)
                    continue
            except BadRowError as error:
                self._bad(path, number, start, text, error)
                continue
            yield made(Line, (row, path, number, start, text))

    def _bad(self, path: Path, number: int, offset: int, text: bytes, error: BadRowError) -> None:
        self.rejects.add(path, number, offset, error, text, lines=self.lines)

    def _parquet(self, path: Path) -> Iterator[Line]:
        parquet = _pyarrow_parquet()
        number = told = 0
        size = path.stat().st_size
        with parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    self.lines += 1
                    try:
                        yield Line(_unpacked(row), path, number, -1, b"")
                    except BadRowError as error:
                        text = orjson.dumps(row, default=str)
                        self._bad(path, number, -1, text, error)
                position = size * number // total
                self._report(position - told)
                told = position
        self._report(size - told)

    def _report(self, count: int) -> None:
        """Tell that so many bytes more were read."""
        self.bytes_read += count
        if self._progress is not None and count:
            self._progress(count)


class _Watched(io.FileIO):
    """A file that tells how much is read of it; asking where it stands once a line costs more."""

    def __init__(self, path: Path, told: Callable[[int], None]) -> None:
        super().__init__(path)
        self._told = told

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        count = super().readinto(buffer)
        self._told(count)
        return count


def read_row(path: Path, offset: int) -> Row:
    """The row whose line begins at `offset` of an unpacked JSON-lines file.

    Raises:
        ConfigError: there is no JSON object.
    """
    with path.open("rb") as file:
        file.seek(offset)
        text = file.readline()
    try:
        row = orjson.loads(text.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path}: no JSON line at byte {offset}: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path}: no JSON object at byte {offset}")
    return row


def open_unpacked(path: Path, packed: BinaryIO) -> BinaryIO:
    """The bytes of an open file, unpacked if its name ends in `.gz` or `.zst`."""
    if path.suffix == ".gz":
        return cast(
            "BinaryIO", io.BufferedReader(cast("Any", gzip.GzipFile(fileobj=packed)), _BUFFER)
        )
    if path.suffix == ".zst":
        reader = zstandard().ZstdDecompressor().stream_reader(packed, read_across_frames=True)
        return io.BufferedReader(reader, _BUFFER)
    return packed


def zstandard() -> Any:
    """The module `zstandard`.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        import zstandard as module
    except ImportError as error:
        raise ConfigError("zstd files need zstandard: pip install 'rlbridge[data]'") from error
    return module


def _pyarrow_parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow: pip install 'rlbridge[data]'") from error
    return parquet


def _is_parquet(path: Path) -> bool:
    return path.suffix in (".parquet", ".pq")


def _unpacked(row: Row) -> Row:
    """A Parquet row with its JSON texts read."""
    for name in _JSON_COLUMNS & row.keys():
        if isinstance(row[name], str) and row[name][:1] in ("{", "["):
            try:
                row[name] = orjson.loads(row[name])
            except orjson.JSONDecodeError as error:
                raise BadRowError(f"not JSON: {error}", at=f"$.{name}", kind="not JSON") from error
    return row


def _second_try(text: bytes, error: orjson.JSONDecodeError) -> Row:
    """What Python's own JSON writes and JSON doesn't allow: NaN, of which a reward may be."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):  # nested deeper than either reads
        cut = "" if text.endswith(b"\n") else "; the file was cut short here"
        raise BadRowError(f"not JSON: {error}{cut}", kind="not JSON") from None
    if not isinstance(row, dict):
        raise _no_object(row)
    _check_unicode(row)
    return row


def _check_unicode(row: Row) -> None:
    """Refuse text that no file can hold."""
    try:
        orjson.dumps(row)
    except orjson.JSONEncodeError as error:
        reason = f"the row can't be written as JSON: {error}"
        raise BadRowError(reason, kind="no valid text") from error


def _no_object(row: Any) -> BadRowError:
    return BadRowError(
        f"a row must be a JSON object, not {type(row).__name__}"
        + ("; write one object a line" if isinstance(row, list) else ""),
        kind="no object",
    )
