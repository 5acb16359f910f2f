"""Captured calls on disk: append-only JSONL in segments, readable after any kill. Knows no tokens.

A record is in the file before its reply is sent, so what a client has seen survives the gateway.
A line cut off by a crash is left where it is and never read; writing goes on in a new segment.
Nobody's segment is written by two: each writer makes its own. Refuses files of another version.
"""

import asyncio
import contextlib
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.gateway.config import CaptureConfig

VERSION = 1
_HEAD = b'{"rlbridge":"captures","version":%d}\n'
_SESSION = b'{"session":"'
_END = b',"kind":"end"'
# A place in one number: which segment, and where in it.
_OFFSET_BITS = 40
_DUMP = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class CaptureLog:
    """Segments in a folder: appends records, and finds a session's again.

    Args:
        folder: made if it isn't there.
        config: when to sync, and how long a segment may be.
        keep_ended: find sessions that their clients ended, too; a gateway forgets them.
    """

    def __init__(self, folder: Path, config: CaptureConfig, *, keep_ended: bool = False) -> None:
        self._keep_ended = keep_ended
        self._ended: dict[str, int] = {}
        self._folder = folder
        self._config = config
        self._paths: list[Path] = []
        self._index: dict[str, array[int]] = {}
        self._file = -1
        self._size = 0
        self._dirty = False
        self._syncer: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None

    def recover(self) -> None:
        """Make the folder, and find what earlier gateways left in it.

        Raises:
            ConfigError: the folder can't be used, or holds captures of another version.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self._folder.glob("calls-*.jsonl")):
                self._scan(path)
        except OSError as error:
            raise ConfigError(f"capture.folder {self._folder}: {error}") from error

    def start(self) -> None:
        """Sync from time to time, where the config says so; needs a running loop."""
        if self._config.fsync == "interval":
            self._syncer = asyncio.get_running_loop().create_task(self._sync_often())

    def append(self, session: str, kind: str, record: Mapping[str, Any]) -> None:
        """Write one record; it survives the process from here on.

        Raises:
            OSError: it couldn't be written; what was begun is cut off and never read.
        """
        data = orjson.dumps({"session": session, "kind": kind, **record}, option=_DUMP)
        if self._file < 0 or self._size >= self._config.segment_mb * 1_000_000:
            self._next_segment()
        try:
            written = os.write(self._file, data)
        except OSError:
            self._close_segment()
            raise
        if written != len(data):
            self._close_segment()
            raise OSError(f"{self._paths[-1]}: {written} of {len(data)} bytes written")
        place = (len(self._paths) - 1) << _OFFSET_BITS | self._size
        self._size += len(data)
        self._dirty = True
        if kind == "end":
            self._index.pop(session, None)
        else:
            self._index.setdefault(session, array("Q")).append(place)

    async def durable(self) -> None:
        """Wait until what was appended is on disk, where the config says `always`."""
        if self._config.fsync != "always":
            return
        while self._dirty:
            if self._syncing is None:
                self._syncing = asyncio.get_running_loop().create_task(self._sync())
            await asyncio.shield(self._syncing)

    def __contains__(self, session: str) -> bool:
        return session in self._index

    def sessions(self) -> Iterator[str]:
        """Every session with records, oldest first."""
        yield from list(self._index)

    def records(self, session: str) -> list[dict[str, Any]]:
        """A session's records in the order written; empty if it has none."""
        found = []
        last, file = -1, None
        with contextlib.ExitStack() as stack:
            for place in self._index.get(session, ()):
                number, offset = place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1)
                if number != last or file is None:
                    file = stack.enter_context(self._paths[number].open("rb"))
                    last = number
                file.seek(offset)
                found.append(orjson.loads(file.readline()))
        return found

    async def aclose(self) -> None:
        """Sync and close."""
        if self._syncer is not None:
            self._syncer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._syncer
        if self._config.fsync != "never":
            await self._sync()
        self._close_segment()

    async def _sync_often(self) -> None:
        while True:
            await asyncio.sleep(self._config.fsync_interval_s)
            await self._sync()

    async def _sync(self) -> None:
        try:
            if self._dirty and self._file >= 0:
                self._dirty = False
                # A duplicate, because the segment may be closed before the disk is done.
                file = os.dup(self._file)
                try:
                    await asyncio.to_thread(os.fsync, file)
                finally:
                    os.close(file)
        finally:
            self._syncing = None

    def _next_segment(self) -> None:
        self._close_segment()
        number = 1 + max((_number(path) for path in self._folder.glob("calls-*.jsonl")), default=0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        while True:
            path = self._folder / f"calls-{number:06}.jsonl"
            try:
                self._file = os.open(path, flags, 0o600)
                break
            except FileExistsError:  # another gateway was faster
                number += 1
        head = _HEAD % VERSION
        os.write(self._file, head)
        self._paths.append(path)
        self._size = len(head)

    def _close_segment(self) -> None:
        if self._file >= 0:
            if self._dirty and self._config.fsync != "never":
                os.fsync(self._file)
                self._dirty = False
            os.close(self._file)
            self._file = -1

    def _scan(self, path: Path) -> None:
        number = len(self._paths)
        self._paths.append(path)
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # cut off by a crash
                    break
                if offset == 0:
                    _check_head(path, line)
                elif line.startswith(_SESSION):
                    end = line.index(b'"', len(_SESSION))
                    session = line[len(_SESSION) : end].decode()
                    ended = self._ended.get(session, 0)
                    if line.startswith(_END, end + 1):
                        self._ended[session] = ended + 1
                        if not self._keep_ended:
                            self._index.pop(session, None)
                    else:
                        if ended and self._keep_ended:  # its name was used again
                            session = f"{session}~{ended + 1}"
                        place = number << _OFFSET_BITS | offset
                        self._index.setdefault(session, array("Q")).append(place)
                offset += len(line)


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("calls-")
    return int(digits) if digits.isdigit() else 0


def _check_head(path: Path, line: bytes) -> None:
    try:
        head = orjson.loads(line)
    except ValueError:
        head = {}
    if head.get("rlbridge") != "captures" or head.get("version") != VERSION:
        raise ConfigError(f"{path} holds no captures of version {VERSION}; move it elsewhere")
