"""Where valid rewards are kept between runs or within one. Refuses to keep invalid ones."""

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any, Final, Protocol, TypeVar

import orjson

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import ValidReward
from rlbridge.errors import ConfigError

log = logging.getLogger("rlbridge.gym")

T = TypeVar("T")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS kept_rewards (
    key BLOB PRIMARY KEY, value REAL NOT NULL, components TEXT NOT NULL, masked INTEGER NOT NULL
)
"""
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_LOCK_WAIT_S: Final = 1.0
_PAUSE_S: Final = 30.0
_TRIM_EVERY: Final = 1000


class Cache(Protocol):
    """Keeps valid rewards by the 16-byte digest of their question.

    Attributes:
        is_deep: whether `fetch` may find what `peek` doesn't.
    """

    is_deep: bool

    def peek(self, key: bytes) -> ValidReward | None:
        """The reward kept under `key`, if it can be had without a wait."""
        ...

    async def fetch(self, key: bytes) -> ValidReward | None:
        """The reward kept under `key`, wherever it is."""
        ...

    def put(self, key: bytes, reward: ValidReward) -> None:
        """Keep `reward`; never waits."""
        ...

    async def aclose(self) -> None:
        """Write down what is still to be written."""
        ...

    def abandon(self) -> None:
        """The same without a loop, and without a wait."""
        ...


def open_cache(config: GymConfig) -> Cache | None:
    """The cache that `config` asks for; none for servers declared non-deterministic.

    Raises:
        ConfigError: the SQLite file can't be opened.
    """
    if config.cache == "off" or not config.deterministic:
        return None
    memory = MemoryCache(config.cache_entries)
    if config.cache == "memory":
        return memory
    assert config.cache_path is not None  # noqa: S101 (GymConfig checks it)
    return SqliteCache(config.cache_path, config.cache_entries, memory)


class MemoryCache:
    """The most recently used rewards, at most `entries` of them.

    A plain reward is kept as its number: a hundred thousand small objects would cost every
    garbage collection more than the cache saves.
    """

    is_deep = False

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._rewards: OrderedDict[bytes, ValidReward | float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rewards)

    def peek(self, key: bytes) -> ValidReward | None:
        """The reward kept under `key`, if any."""
        reward = self._rewards.get(key)
        if reward is None:
            return None
        self._rewards.move_to_end(key)
        return reward if isinstance(reward, ValidReward) else ValidReward(reward)

    def put(self, key: bytes, reward: ValidReward) -> None:
        """Keep `reward`."""
        plain = not reward.components and not reward.mask_sample
        self._rewards[key] = reward.value if plain else reward
        if len(self._rewards) > self._entries:
            self._rewards.popitem(last=False)

    async def fetch(self, key: bytes) -> ValidReward | None:
        """The same: there is nowhere else to look."""
        return self.peek(key)

    async def aclose(self) -> None:
        """Nothing to write."""

    def abandon(self) -> None:
        """Nothing to write."""


class SqliteCache:
    """Rewards in a file that several processes may share, with a `MemoryCache` in front.

    All of SQLite runs in one thread of its own, so that a slow disk never holds the loop. A file
    that fails (locked, full) is left alone for `pause_s`: meanwhile memory serves.
    """

    is_deep = True

    def __init__(
        self, path: str, entries: int, front: MemoryCache, *, pause_s: float = _PAUSE_S
    ) -> None:
        self._front = front
        self._entries = entries
        self._pause_s = pause_s
        self._resume_at = 0.0
        self._puts = 0
        self._prepared = False
        try:
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT_S, check_same_thread=False)
            self._prepare()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) not in _LOCKED:
                raise ConfigError(f"gym.cache_path {path}: {error}") from error
            self._pause(error)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rlbridge-cache")

    def peek(self, key: bytes) -> ValidReward | None:
        """The reward kept in memory under `key`, if any."""
        return self._front.peek(key)

    async def fetch(self, key: bytes) -> ValidReward | None:
        """The reward kept in the file under `key`, if any; memory has it from now on."""
        loop = asyncio.get_running_loop()
        reward = await loop.run_in_executor(self._thread, self._use, self._read, key)
        if reward is not None:
            self._front.put(key, reward)
        return reward

    def put(self, key: bytes, reward: ValidReward) -> None:
        """Keep `reward`; the file gets it a moment later."""
        self._front.put(key, reward)
        self._thread.submit(self._use, self._write, key, reward)

    async def aclose(self) -> None:
        """Write what is pending and close the file."""
        await asyncio.wrap_future(self._ending())
        self._thread.shutdown()

    def abandon(self) -> None:
        """Write what is pending and close the file, on the cache's own thread."""
        self._ending()
        self._thread.shutdown(wait=False)

    def _ending(self) -> Future[None]:
        try:
            return self._thread.submit(self._end)
        except RuntimeError:  # at exit Python has ended the thread, after all it had to write
            self._end()
            ended: Future[None] = Future()
            ended.set_result(None)
            return ended

    def _use(self, work: Callable[..., T], *given: Any) -> T | None:
        """What `work` does with the file; None while the file is left alone."""
        if monotonic() < self._resume_at:
            return None
        try:
            if not self._prepared:
                self._prepare()
            with self._db:
                return work(*given)
        except sqlite3.Error as error:
            self._pause(error)
            return None

    def _pause(self, error: sqlite3.Error) -> None:
        self._resume_at = monotonic() + self._pause_s
        log.warning(
            "gym cache file fails; going on without it for a while",
            extra={"gym_cache_error": str(error)},
        )

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(_SCHEMA)
        self._db.commit()
        self._prepared = True

    def _read(self, key: bytes) -> ValidReward | None:
        row = self._db.execute(
            "SELECT value, components, masked FROM kept_rewards WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else ValidReward(row[0], orjson.loads(row[1]), bool(row[2]))

    def _write(self, key: bytes, reward: ValidReward) -> None:
        components = orjson.dumps(dict(reward.components)).decode()
        values = (key, reward.value, components, reward.mask_sample)
        self._db.execute("INSERT OR REPLACE INTO kept_rewards VALUES (?, ?, ?, ?)", values)
        self._puts += 1
        if self._puts % _TRIM_EVERY == 0:
            self._trim()

    def _trim(self) -> None:
        count = self._db.execute("SELECT COUNT(*) FROM kept_rewards").fetchone()[0]
        if count > self._entries:
            # Rows are numbered as they come; a replaced one gets a new number.
            self._db.execute(
                "DELETE FROM kept_rewards WHERE rowid IN "
                "(SELECT rowid FROM kept_rewards ORDER BY rowid LIMIT ?)",
                (count - self._entries,),
            )

    def _end(self) -> None:
        if self._puts:
            self._use(self._trim)
        self._db.close()
