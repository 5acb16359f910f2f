"""The cache's file: shared, locked, full, trimmed. A cache that fails never costs a reward."""

import asyncio
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlbridge.contracts.reward import ValidReward
from rlbridge.errors import ConfigError
from rlbridge.gym import GymClient
from rlbridge.gym.caches import MemoryCache, SqliteCache
from rlbridge.testing import GymServer, make_row

ROW = make_row()
FAILS = "gym cache file fails; going on without it for a while"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


@pytest.fixture
def config(gym_server: GymServer, quick_config: Any, file: Path) -> Any:
    return quick_config(gym_server.url, cache="sqlite", cache_path=str(file))


def values(file: Path) -> list[float]:
    """What the file holds, oldest first."""
    with closing(sqlite3.connect(file)) as db:
        return [row[0] for row in db.execute("SELECT value FROM kept_rewards ORDER BY rowid")]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process's transaction, from where SQLite stands."""
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.rollback()


def failures(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.message == FAILS for record in caplog.records)


async def test_two_open_clients_see_each_others_rewards(
    gym_server: GymServer, config: Any, file: Path
) -> None:
    async with GymClient(config) as one, GymClient(config) as other:
        first = await one.verify(ROW, "4")
        while not values(file):  # noqa: ASYNC110 (a thread writes it)
            await asyncio.sleep(0.005)
        second = await other.verify(ROW, "4")
    assert second == first
    assert (second.from_cache, gym_server.behaviour.verifies) == (True, 1)


async def test_clients_that_write_at_once_lose_nothing(gym_server: GymServer, config: Any) -> None:
    clients = [GymClient(config) for _ in range(3)]
    batches = [[(ROW, f"{name} {n}") for n in range(60)] for name in range(len(clients))]
    await asyncio.gather(
        *(gym.verify_batch(batch) for gym, batch in zip(clients, batches, strict=True))
    )
    for gym in clients:
        await gym.aclose()
    asked = gym_server.behaviour.verifies
    async with GymClient(config) as reader:
        rewards = await reader.verify_batch([pair for batch in batches for pair in batch])
    assert asked == 180
    assert all(reward.from_cache for reward in rewards)


@pytest.mark.parametrize("when", ["at_opening", "later"])
async def test_a_locked_file_costs_no_reward_and_is_told_once(
    config: Any, file: Path, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    if when == "later":
        async with GymClient(config):
            pass
    with locked(file):
        async with GymClient(config) as gym:
            rewards = await gym.verify_batch([(ROW, str(n)) for n in range(20)])
            again = await gym.verify_batch([(ROW, str(n)) for n in range(20)])
    assert all(reward.valid for reward in rewards)
    assert all(reward.from_cache for reward in again)
    assert failures(caplog) == 1


async def test_a_file_that_is_free_again_is_used_again(file: Path) -> None:
    with locked(file):
        cache = SqliteCache(str(file), 100, MemoryCache(100), pause_s=0.0)
        cache.put(b"lost", ValidReward(1.0))
        assert await cache.fetch(b"lost") is None
    cache.put(b"kept", ValidReward(2.0))
    await cache.aclose()
    assert values(file) == [2.0]


async def test_a_full_disk_costs_no_reward(
    gym_server: GymServer, config: Any, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gym_server.behaviour.rewards = {"reward": 1.0, "reward_components": {"x" * 50_000: 1.0}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        async with GymClient(config) as gym:
            rewards = await gym.verify_batch([(ROW, str(n)) for n in range(20)])
            again = await gym.verify_batch([(ROW, str(n)) for n in range(20)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(reward.valid for reward in rewards)
    assert all(reward.from_cache for reward in again)
    assert failures(caplog) == 1
    assert 0 < len(values(file)) < 20


async def test_the_oldest_go_when_there_are_too_many(file: Path) -> None:
    cache = SqliteCache(str(file), 10, MemoryCache(10))
    for n in [*range(30), 0]:
        cache.put(n.to_bytes(16, "little"), ValidReward(float(n)))
    await cache.aclose()
    assert values(file) == [*range(21, 30), 0]


async def test_what_a_lost_loop_had_still_to_write_is_written(file: Path) -> None:
    cache = SqliteCache(str(file), 10, MemoryCache(10))
    for n in range(5):
        cache.put(bytes([n]), ValidReward(float(n)))
    cache.abandon()
    while len(values(file)) < 5:  # noqa: ASYNC110 (a thread writes it)
        await asyncio.sleep(0.005)
    assert values(file) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", [None, b"no database, but long enough to be read as one" * 99])
def test_a_path_that_can_be_no_cache_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "nowhere" / "cache.db" if content is None else tmp_path / "notes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cache_path"):
        SqliteCache(str(path), 10, MemoryCache(10))
    assert content is None or path.read_bytes() == content
