"""The segments of a capture folder: which there are, and where each session's records are.

::

    calls-000001.jsonl   records, append-only, written by one gateway
    calls-000001.index   where its records are; made when it is closed, or read to its end
    pruned.json          segments given up in one step, deleted or about to be

An index is believed for a segment of exactly its size and time, if its checksum is right; else the
segment is read in full and the index made anew. Refuses files of another version.
"""

import contextlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import orjson

from rlbridge.durable import sync_folder
from rlbridge.errors import ConfigError

VERSION: Final = 1
HEAD: Final = b'{"rlbridge":"captures","version":%d}\n' % VERSION
PRUNED: Final = "pruned.json"
# In a session's places: it ended here.
END: Final = -1
_SESSION = b'{"session":"'
_END = b',"kind":"end"'

Contents = dict[str, list[int]]
"""By session: the offsets of its records in the order written, and `END` where it ended."""


class Cut(NamedTuple):
    """Up to where a session's name is deleted, in a segment that stays or was deleted.

    Attributes:
        segment: its number; whatever the name has in segments before it is deleted.
        entries: and so many of its entries (`Contents`) in this one.
        ended: how many sessions of the name had ended until there, so that the later ones keep
            the names that readers know them by.
    """

    segment: int
    entries: int
    ended: int

    def deleted(self, segment: int, entries: int) -> int:
        """How many of a name's entries in a segment are deleted."""
        return entries if segment < self.segment else self.entries * (segment == self.segment)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted from a folder.

    Attributes:
        segments: file names that count as deleted; they may still be there after a crash.
        newest: the highest number a deleted segment had; numbers are never used again.
        cuts: by name: of sessions in a deleted segment, whose names are in one that stayed too.
    """

    segments: tuple[str, ...] = ()
    newest: int = 0
    cuts: Mapping[str, Cut] = field(default_factory=dict)


def segment_path(folder: Path, number: int) -> Path:
    """Where the segment of this number is."""
    return folder / f"calls-{number:06}.jsonl"


def number_of(path: Path | str) -> int:
    """The number of a segment; 0 for a file that only looks like one."""
    digits = Path(path).stem.removeprefix("calls-")
    return int(digits) if digits.isdigit() else 0


def index_path(path: Path) -> Path:
    """Where the index of a segment is."""
    return path.with_suffix(".index")


def segments_in(folder: Path) -> tuple[list[Path], Pruned]:
    """The segments that count, the oldest first, and what was deleted, as of one moment.

    A segment deleted after that moment is missing when it is opened; then both are to be read
    again.

    Raises:
        ConfigError: see `read_pruned`.
    """
    # First the files: one that was deleted before the second step is in neither.
    paths = sorted(folder.glob("calls-*.jsonl"), key=lambda path: (number_of(path), path.name))
    pruned = read_pruned(folder)
    return [path for path in paths if path.name not in pruned.segments], pruned


def next_number(folder: Path) -> int:
    """A number that no segment of this folder has or had."""
    there = max((number_of(path) for path in folder.glob("calls-*.jsonl")), default=0)
    return 1 + max(there, read_pruned(folder).newest)


def contents_of(path: Path, *, keep_index: bool) -> Contents:
    """What a segment holds, from its index if it has a good one.

    Args:
        path: the segment.
        keep_index: write the index if there was no good one.

    Raises:
        ConfigError: it holds no captures of this version.
        OSError: it can't be read.
    """
    stat = path.stat()
    found = _indexed(path, stat)
    if found is None:
        found = _scanned(path)
        if keep_index:
            write_index(path, found, stat)
    return found


def write_index(path: Path, contents: Contents, stat: os.stat_result) -> None:
    """Make a segment's index; where it can't be written, there is none.

    Args:
        path: the segment.
        contents: what it holds.
        stat: of the segment, before its contents were looked at.
    """
    payload = orjson.dumps(contents)
    index = index_path(path)
    draft = index.with_suffix(".index.tmp")
    with contextlib.suppress(OSError):
        with _private(draft) as file:
            file.write(orjson.dumps(_index_head(stat, payload)) + b"\n" + payload)
        draft.replace(index)


def delete(path: Path) -> None:
    """Delete a segment with its index, as far as they are there."""
    index = index_path(path)
    for one in (path, index, index.with_suffix(".index.tmp")):
        one.unlink(missing_ok=True)


def read_pruned(folder: Path) -> Pruned:
    """What was deleted from a folder.

    Raises:
        ConfigError: `pruned.json` is garbled or of another version.
    """
    path = folder / PRUNED
    try:
        document = orjson.loads(path.read_bytes())
        written_by = document["rlbridge"], document["version"]
        cuts = {name: Cut(*cut) for name, cut in document["cuts"].items()}
        pruned = Pruned(tuple(document["segments"]), document["newest"], cuts)
    except FileNotFoundError:
        return Pruned()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is garbled: {error!r}") from error
    if written_by != ("captures pruned", VERSION):
        raise ConfigError(f"{path} is of another version; use the rlbridge that wrote it")
    return pruned


def write_pruned(folder: Path, pruned: Pruned) -> None:
    """Say what was deleted from a folder, in one step that survives a power cut."""
    document = {
        "rlbridge": "captures pruned",
        "version": VERSION,
        "segments": pruned.segments,
        "newest": pruned.newest,
        "cuts": {name: tuple(cut) for name, cut in pruned.cuts.items()},
    }
    path = folder / PRUNED
    draft = path.with_suffix(".json.tmp")
    with _private(draft) as file:
        file.write(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(folder)


def _private(path: Path) -> BinaryIO:
    """A new file that only its owner can read, as segments are."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _index_head(stat: os.stat_result, payload: bytes) -> dict[str, Any]:
    return {
        "rlbridge": "captures index",
        "version": VERSION,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "crc32": zlib.crc32(payload),
    }


def _indexed(path: Path, stat: os.stat_result) -> Contents | None:
    try:
        head, _, payload = index_path(path).read_bytes().partition(b"\n")
        if orjson.loads(head) != _index_head(stat, payload):
            return None
    except (OSError, ValueError):
        return None
    contents: Contents = orjson.loads(payload)
    return contents


def _scanned(path: Path) -> Contents:
    contents: Contents = {}
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):  # cut off by a crash
                break
            if offset == 0:
                _check_head(path, line)
            elif line.startswith(_SESSION):
                end = line.find(b'"', len(_SESSION))
                places = contents.setdefault(line[len(_SESSION) : end].decode(errors="replace"), [])
                places.append(END if line.startswith(_END, end + 1) else offset)
            offset += len(line)
    return contents


def _check_head(path: Path, line: bytes) -> None:
    try:
        head = orjson.loads(line)
    except ValueError:
        head = {}
    if (
        not isinstance(head, dict)
        or head.get("rlbridge") != "captures"
        or head.get("version") != VERSION
    ):
        raise ConfigError(f"{path} holds no captures of version {VERSION}; move it elsewhere")
