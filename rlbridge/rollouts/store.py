"""The files of a run: rows, their index, failures, what was asked, and a lock. One writer.

A row is appended to the data file, forced to disk, and only then indexed and called done; so the
process may die at any moment and the next one goes on with nothing lost and nothing twice. Rows
that come while the disk is busy are forced together.
"""

import asyncio
import fcntl
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import orjson

from rlbridge.contracts import wire
from rlbridge.durable import sync_folder
from rlbridge.errors import ConfigError, ContractError
from rlbridge.rollouts.appending import AppendFile
from rlbridge.rollouts.failures import FailureLog
from rlbridge.rollouts.index import Entry, Key, pack, reconcile
from rlbridge.rollouts.run_record import begin_or_resume


class Store:
    """The output of one run, to be entered with `async with`; finds what an earlier run left.

    Args:
        output: the data file; the others lie beside it: `NAME.index`, `NAME.run.json`,
            `NAME.lock` and `STEM_failures.jsonl`.
        asked: what decides which rows come out; a later run must ask for the same.
        accept_changes: allow it to ask for something else.

    Attributes:
        done: the rollouts that have their row.
        failed: of those without one, how often each was tried.
        resumed: whether an earlier run left rows or failures.

    Raises:
        ConfigError: another process writes to it, it was made by something else or changed by
            hand, or it was begun with other options.
    """

    def __init__(
        self, output: Path, asked: Mapping[str, Any], *, accept_changes: bool = False
    ) -> None:
        if not output.parent.is_dir():
            raise ConfigError(f"no folder {output.parent} to write {output.name} into")
        self.output = output
        self._lock = _lock(_beside(output, "lock"))
        try:
            self._open(asked, accept_changes)
        except BaseException:
            os.close(self._lock)
            raise
        self._waiting: list[tuple[bytes, Key | None, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._broken: BaseException | None = None

    def _open(self, asked: Mapping[str, Any], accept_changes: bool) -> None:
        output, record = self.output, _beside(self.output, "run.json")
        if _size(output) and not record.exists():
            raise ConfigError(
                f"{output} exists and {record.name}, the record of how it was made, does not; "
                "nothing was changed. Choose another --output"
            )
        begun = any(_size(path) for path in (output, failures_path(output)))
        begin_or_resume(record, asked, accept_changes=accept_changes or not begun)
        self.resumed = begun
        self._data = AppendFile(output)
        self._index = AppendFile(_beside(output, "index"))
        sync_folder(output.parent)
        self.done = reconcile(self._data, self._index)
        self._failures = FailureLog(failures_path(output))
        self.failed = self._failures.attempts(self.done)

    async def __aenter__(self) -> Self:
        self._writer = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Write what is waiting, then let others write."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._wake.set()
            await writer
        self._data.close()
        self._index.close()
        self._failures.close()
        os.close(self._lock)

    async def put(self, key: Key, row: Mapping[str, Any]) -> None:
        """Keep a finished row; returns once it is on the disk.

        Raises:
            ContractError: it can't be written as JSON, or is there already.
            RunError: the disk is full.
        """
        line = _line(key, row)
        if not self.done.add(key):
            raise ContractError(f"rollout {tuple(key)} has its row already")
        await self._hand_over(line, key)
        self.failed.pop(key, None)

    async def put_failure(self, key: Key, row: Mapping[str, Any]) -> None:
        """Keep a rollout that has no row, with the reason and how often it was tried."""
        self.failed[key] = int(row[wire.ROLLOUT_ATTEMPTS])
        await self._hand_over(_line(key, row), None)

    async def _hand_over(self, line: bytes, key: Key | None) -> None:
        if self._broken is not None:
            raise self._broken
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((line, key, written))
        self._wake.set()
        await written

    async def _write(self) -> None:
        """Write what comes, until told to end; while a thread forces data to disk, more comes."""
        while self._waiting or self._writer is not None:
            if not self._waiting:
                await self._wake.wait()
                self._wake.clear()
                continue
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._append, [(line, key) for line, key, _ in batch])
            except Exception as error:  # noqa: BLE001 (every waiting caller gets it)
                self._broken = error
                batch += self._waiting
                self._waiting = []
            for _, _, written in batch:
                if written.done():  # its caller was cancelled; the row is kept all the same
                    continue
                if self._broken is None:
                    written.set_result(None)
                else:
                    written.set_exception(self._broken)

    def _append(self, batch: list[tuple[bytes, Key | None]]) -> None:
        entries = []
        for line, key in batch:
            if key is None:
                self._failures.append(line)
            else:
                offset = self._data.append(line)
                entries.append(pack(Entry(key, offset, len(line), zlib.crc32(line))))
        if len(entries) < len(batch):
            self._failures.sync()
        if entries:
            self._data.sync()
            self._index.append(b"".join(entries))
            self._index.sync()

    async def finish(self, *, ordered: bool) -> None:
        """Leave the files tidy: failures that succeeded later are gone, rows sorted if asked."""
        from rlbridge.rollouts.ordering import sort_rows

        await asyncio.to_thread(self._failures.compact, self.failed)
        if ordered:
            await asyncio.to_thread(self._sort, sort_rows)

    def _sort(self, sort_rows: Any) -> None:
        sort_rows(self._data, self._index)
        self._data.close()
        self._index.close()
        self._data = AppendFile(self.output)
        self._index = AppendFile(_beside(self.output, "index"))


def failures_path(output: Path) -> Path:
    """Where the failures of an output go; NeMo Gym looks for them there too."""
    return output.with_name(f"{output.stem}_failures.jsonl")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _beside(output: Path, kind: str) -> Path:
    return output.with_name(f"{output.name}.{kind}")


def _line(key: Key, row: Mapping[str, Any]) -> bytes:
    marked = {**row, wire.TASK_INDEX: key.task, wire.ROLLOUT_INDEX: key.rollout}
    try:
        return orjson.dumps(marked, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise ContractError(f"rollout {tuple(key)} can't be written as JSON: {error}") from error


def _lock(path: Path) -> int:
    """A lock that ends with the process, however it ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise ConfigError(
            f"process {holder} writes to {path.name.removesuffix('.lock')} at this moment; wait "
            "for it, end it, or choose another --output"
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
