"""Which row lies where in an output file: fixed-size entries, each with a checksum of its own.

The data file is the truth, the index a fast and checked way into it. An index that doesn't fit
its data file is made again from it; a data file that was changed by hand is refused.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.rollouts.appending import AppendFile

_ENTRY: Final = struct.Struct("<IIQII")
_CHECK: Final = struct.Struct("<I")
ENTRY_BYTES: Final = _ENTRY.size + _CHECK.size
# How much of the data's end is held against its checksums at a start: damage comes at the end.
_CHECKED_BYTES: Final = 64 << 20
_PIECE: Final = 1 << 20
_PIECE_ENTRIES: Final = 1 << 14


class Key(NamedTuple):
    """Which rollout: `_ng_task_index` and `_ng_rollout_index`."""

    task: int
    rollout: int


class Entry(NamedTuple):
    """One row of the data file.

    Attributes:
        key: which rollout it is.
        offset: its first byte.
        length: its bytes, the line end included.
        crc: zlib's CRC-32 of them.
    """

    key: Key
    offset: int
    length: int
    crc: int

    @property
    def stop(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length


def pack(entry: Entry) -> bytes:
    """The entry as it stands in the index file."""
    body = _ENTRY.pack(*entry.key, entry.offset, entry.length, entry.crc)
    return body + _CHECK.pack(zlib.crc32(body))


class Done:
    """The rollouts that have their row; a few bytes each."""

    __slots__ = ("_count", "_tasks")

    def __init__(self) -> None:
        self._tasks: dict[int, int] = {}  # of each task the rollouts done, one bit each
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        return bool(self._tasks.get(key.task, 0) >> key.rollout & 1)

    def add(self, key: Key) -> bool:
        """Note a rollout; False if it was noted before."""
        if key in self:
            return False
        self._tasks[key.task] = self._tasks.get(key.task, 0) | 1 << key.rollout
        self._count += 1
        return True


def entries_of(index: AppendFile) -> Iterator[Entry]:
    """The whole entries from the index's beginning; they end before the first bad one."""
    at = start = 0
    while piece := index.read(start, ENTRY_BYTES * _PIECE_ENTRIES):
        for place in range(0, len(piece) - ENTRY_BYTES + 1, ENTRY_BYTES):
            entry = _unpack(piece, place)
            if entry is None or entry.offset != at:
                return
            yield entry
            at = entry.stop
        start += len(piece)


def _unpack(data: bytes, at: int) -> Entry | None:
    """The entry at a place; None if it is torn."""
    body = data[at : at + _ENTRY.size]
    if data[at + _ENTRY.size : at + ENTRY_BYTES] != _CHECK.pack(zlib.crc32(body)):
        return None
    task, rollout, offset, length, crc = _ENTRY.unpack(body)
    return Entry(Key(task, rollout), offset, length, crc)


def key_of(row: dict[str, Any]) -> Key:
    """The rollout a row is of.

    Raises:
        KeyError: it doesn't say.
        ValueError: its indices are no numbers.
    """
    return Key(int(row[wire.TASK_INDEX]), int(row[wire.ROLLOUT_INDEX]))


def reconcile(data: AppendFile, index: AppendFile) -> Done:
    """Make index and data agree, whatever was going on when the last writer ended.

    Rows that reached the data but not the index are taken up; a torn last line is cut off.

    Returns:
        The rollouts in the data file.

    Raises:
        ConfigError: the data file was changed by hand: a line in it is no row, or one is there
            twice.
    """
    done, count, end = Done(), 0, 0
    for entry in entries_of(index):
        if not done.add(entry.key):
            break
        count, end = count + 1, entry.stop
    index.truncate(count * ENTRY_BYTES)
    if end > data.size or not _end_is_intact(data, index, end):
        done, end = Done(), 0
        index.truncate(0)
    _take_up(data, index, done, end)
    return done


def _end_is_intact(data: AppendFile, index: AppendFile, end: int) -> bool:
    """Whether the last rows of the data are those that the index means."""
    for place in range(index.size - ENTRY_BYTES, -1, -ENTRY_BYTES):
        entry = _unpack(index.read(place, ENTRY_BYTES), 0)
        if entry is None or zlib.crc32(data.read(entry.offset, entry.length)) != entry.crc:
            return False
        if end - entry.offset > _CHECKED_BYTES:
            break
    return True


def _take_up(data: AppendFile, index: AppendFile, done: Done, start: int) -> None:
    """Index the whole lines from `start` on; cut off what follows the last of them."""
    at, rest = start, b""
    while piece := data.read(at + len(rest), _PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        packed = []
        for line in lines:
            entry = _entry(data.path, line + b"\n", at)
            if not done.add(entry.key):
                raise _changed(data.path, at, "is a rollout that the file has already")
            packed.append(pack(entry))
            at = entry.stop
        index.append(b"".join(packed))
    data.truncate(at)
    data.sync()
    index.sync()


def _entry(path: Path, line: bytes, offset: int) -> Entry:
    try:
        key = key_of(orjson.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise _changed(path, offset, f"is no rollout row ({error})") from error
    return Entry(key, offset, len(line), zlib.crc32(line))


def _changed(path: Path, offset: int, what: str) -> ConfigError:
    return ConfigError(
        f"{path}: the line at byte {offset} {what}; the file was changed since it was written. "
        "Give another --output, or mend the file"
    )
