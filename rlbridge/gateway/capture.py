"""Captured calls on disk: append-only JSONL in segments, readable after any kill. Knows no tokens.

A record is in the file before its reply is sent, so what a client has seen survives the gateway.
A line cut off by a crash is left where it is and never read; writing goes on in a new segment.
Nobody's segment is written by two: each writer makes its own and locks it. Refuses files of
another version, and a folder that another gateway holds alone.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.gateway.config import CaptureConfig
from rlbridge.gateway.locks import GATEWAYS, try_lock
from rlbridge.gateway.segments import (
    END,
    HEAD,
    Contents,
    contents_of,
    next_number,
    number_of,
    segment_path,
    segments_in,
    write_index,
)

# A place in one number: which segment, and where in it.
_OFFSET_BITS = 40
_DUMP = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
# A folder from which captures are deleted all the time can't be read; nobody does that.
_TRIES = 5
# How long a gateway waits for one that stops, or for `captures prune`.
_LOCK_WAIT_S = 30.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class CaptureLog:
    """Segments in a folder: appends records, and finds a session's again.

    Args:
        folder: made if it isn't there.
        config: when to sync, and how long a segment may be.
        read_only: write nothing, and find sessions that their clients ended, too; a gateway
            forgets those.

    Attributes:
        folder: as given.
        full: set whenever a segment is full and another is begun.
    """

    def __init__(self, folder: Path, config: CaptureConfig, *, read_only: bool = False) -> None:
        self.full = asyncio.Event()
        self._read_only = read_only
        self._ended: dict[str, int] = {}
        self.folder = folder
        self._lock: int | None = None
        self._config = config
        self._paths: list[Path] = []
        self._index: dict[str, array[int]] = {}
        self._file = -1
        self._size = 0
        self._contents: Contents = {}
        self._dirty = False
        self._syncer: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None

    def recover(self) -> None:
        """Make the folder, and find what earlier gateways left in it.

        Raises:
            ConfigError: the folder can't be used, is another gateway's alone, or holds captures
                of another version.
        """
        try:
            if not self._read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._hold()
            elif not self.folder.is_dir():
                raise ConfigError(f"{self.folder} is no folder; give one that a gateway wrote to")
            for left in reversed(range(_TRIES)):
                try:
                    return self._find()
                except FileNotFoundError:  # deleted while it was looked for
                    if not left:
                        raise
        except OSError as error:
            raise ConfigError(f"capture.folder {self.folder}: {error}") from error

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
        places = self._contents.setdefault(session, [])
        if kind == "end":
            self._index.pop(session, None)
            places.append(END)
        else:
            self._index.setdefault(session, array("Q")).append(place)
            places.append(self._size)
        self._size += len(data)
        self._dirty = True

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
        yield from sorted(self._index, key=lambda session: self._index[session][0])

    def newest_segment(self, session: str) -> Path | None:
        """Where a session's latest record is; None if it has none."""
        places = self._index.get(session)
        return None if places is None else self._paths[places[-1] >> _OFFSET_BITS]

    def forget(self, sessions: Iterable[str]) -> None:
        """Find these sessions no more."""
        for session in sessions:
            self._index.pop(session, None)

    def records(self, session: str) -> list[dict[str, Any]]:
        """A session's records in the order written; empty if it has none.

        Raises:
            FileNotFoundError: they were deleted since they were found.
        """
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
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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

    def _hold(self) -> None:
        """Say that a gateway is at work in the folder, until it is closed or the process ends."""
        alone = self._config.deletes
        try:
            path = self.folder / GATEWAYS
            self._lock = try_lock(path, shared=not alone, wait_s=_LOCK_WAIT_S)
        except OSError as error:
            if alone or error.errno not in _NO_LOCKS:
                raise
            return  # `captures prune` refuses such a folder
        if self._lock is None:
            who = (
                "another gateway"
                if alone
                else "`captures prune`, or a gateway with keep_days or keep_gb,"
            )
            raise ConfigError(
                f"capture.folder {self.folder}: {who} is at work there, and has been for "
                f"{_LOCK_WAIT_S:g} s. A gateway that deletes captures needs a folder of its own"
            )

    def _find(self) -> None:
        """Make the index of sessions from the segments'."""
        self._paths, self._index = [], {}
        paths, pruned = segments_in(self.folder)
        cuts = pruned.cuts
        self._ended = {session: cut.ended for session, cut in cuts.items()}
        for path in paths:
            contents = contents_of(path, keep_index=not self._read_only)
            for session in cuts.keys() & contents.keys():
                places = contents[session]
                del places[: cuts[session].deleted(number_of(path), len(places))]
            base = len(self._paths) << _OFFSET_BITS
            self._paths.append(path)
            for session, places in contents.items():
                self._found(session, base, places)

    def _found(self, session: str, base: int, places: list[int]) -> None:
        if not self._read_only:
            if END in places:
                self._index.pop(session, None)
                places = places[len(places) - places[::-1].index(END) :]
            if places:
                found = self._index.setdefault(session, array("Q"))
                found.extend(base | place for place in places)
            return
        for place in places:
            ended = self._ended.get(session, 0)
            if place == END:
                self._ended[session] = ended + 1
                continue
            # A name that is used again is another session.
            name = f"{session}~{ended + 1}" if ended else session
            self._index.setdefault(name, array("Q")).append(base | place)

    def _next_segment(self) -> None:
        if self._file >= 0:
            self._close_segment()
            self.full.set()
        number = next_number(self.folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        while True:
            path = segment_path(self.folder, number)
            try:
                self._file = os.open(path, flags, 0o600)
                break
            except FileExistsError:  # another gateway was faster
                number += 1
        with contextlib.suppress(OSError):  # no locks here; `captures prune` refuses the folder
            # Nobody but a pruning that asks whether it is locked holds it, for microseconds.
            fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, HEAD)
        self._paths.append(path)
        self._contents = {}
        self._size = len(HEAD)

    def _close_segment(self) -> None:
        if self._file >= 0:
            if self._dirty and self._config.fsync != "never":
                os.fsync(self._file)
                self._dirty = False
            write_index(self._paths[-1], self._contents, os.fstat(self._file))
            os.close(self._file)
            self._file = -1
