"""Replicas as one engine: sticky, balanced, failing over from tokens, never behind."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlbridge.contracts.rollout import FinishReason
from rlbridge.contracts.tokens import PromptSpan
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import Delta, EngineCall
from rlbridge.engines.open import open_engine
from rlbridge.engines.pool import ReplicaPool
from rlbridge.engines.registry import RegistryEntry, publish
from rlbridge.engines.versions import Versions, is_current
from rlbridge.errors import ConfigError, EngineError
from rlbridge.testing import VllmServer

QUICK: dict[str, Any] = {
    "health_interval_s": 0.05,
    "backoff_initial_s": 0.01,
    "backoff_max_s": 0.1,
    "ready_timeout_s": 60.0,
    "patience_s": 60.0,
}
CALL = EngineCall(PromptSpan([72, 105]), {"max_tokens": 50})


@asynccontextmanager
async def pool(*servers: VllmServer, **config: Any) -> AsyncIterator[ReplicaPool]:
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        source = {} if "file" in config else {"urls": [server.url for server in servers]}
        engine = open_engine(PolicyConfig(**{**QUICK, **source, **config}))
        try:
            yield engine
        finally:
            await engine.aclose()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


async def all_up(engine: ReplicaPool, count: int) -> None:
    await engine.info()
    await until(lambda: sum(replica.admitted for replica in engine.stats.replicas) == count)


def _is_at(engine: ReplicaPool, version: int) -> bool:
    return engine.stats.current_version == version


def asked(server: VllmServer) -> int:
    """Generations without the probes'."""
    return sum(body.get("max_tokens") == 50 for body in server.generations)


async def test_a_session_stays_with_its_replica_and_others_spread() -> None:
    servers = [VllmServer(), VllmServer()]
    async with pool(*servers) as engine:
        await all_up(engine, 2)
        for _ in range(6):
            await engine.generate(EngineCall(CALL.prompt, CALL.sampling, session="a"))
        assert sorted(asked(server) for server in servers) == [0, 6]
        for server in servers:
            server.delay_s = 0.05
        await asyncio.gather(*(engine.generate(CALL) for _ in range(20)))
        assert min(asked(server) for server in servers) >= 8
        assert engine.stats.requests == 26


async def test_a_session_moves_when_its_replica_dies_and_gives_the_same_answer() -> None:
    servers = [VllmServer(), VllmServer()]
    call = EngineCall(CALL.prompt, CALL.sampling, session="a")
    # The call finds out that it is dead, and no look at its health before.
    async with pool(*servers, health_interval_s=600) as engine:
        await all_up(engine, 2)
        (before,) = await engine.generate(call)
        home = next(server for server in servers if server.url == before.replica)
        await home.stop()
        (after,) = await engine.generate(call)
        assert after.replica != before.replica
        assert after.turn is not None
        assert before.turn is not None
        assert after.turn.generation == before.turn.generation
        assert engine.stats.failovers == 1
        assert [replica.admitted for replica in engine.stats.replicas].count(True) == 1
        await home.start()
        await all_up(engine, 2)


@pytest.mark.parametrize(
    "fault", ["reset", "reset_mid_body", "status_500", "status_503", "truncated_json",
              "lost_logprobs", "other_prompt"],
)  # fmt: skip
async def test_a_failed_call_is_repeated_elsewhere(fault: str) -> None:
    bad, good = VllmServer(), VllmServer()
    async with pool(bad, good) as engine:
        await all_up(engine, 2)
        bad.faults = deque([fault] * 100)
        answers = await asyncio.gather(*(engine.generate(CALL) for _ in range(8)))
    assert all(answer.replica == good.url for (answer,) in answers)
    assert engine.stats.failovers > 0


async def test_attempts_are_bounded_and_the_last_error_is_told() -> None:
    server = VllmServer()
    async with pool(server, max_attempts=3) as engine:
        await engine.info()
        server.faults = deque(["status_503"] * 3)
        with pytest.raises(EngineError, match="503"):
            await engine.generate(CALL)
        await engine.generate(CALL)
        server.faults = deque(["status_503"] * 2)
        await engine.generate(CALL)


async def test_a_refused_call_is_not_repeated() -> None:
    servers = [VllmServer(), VllmServer()]
    async with pool(*servers) as engine:
        await all_up(engine, 2)
        before = sum(len(server.generations) for server in servers)
        with pytest.raises(EngineError, match="out of vocabulary"):
            await engine.generate(EngineCall(PromptSpan([9_999]), {"max_tokens": 1}))
        assert sum(len(server.generations) for server in servers) == before + 1


async def test_an_aborted_answer_is_sampled_again_and_marked_if_it_never_ends() -> None:
    server = VllmServer(answers="x" * 10)
    async with pool(server, max_attempts=3) as engine:
        await engine.info()
        server.faults = deque(["abort", "abort"])
        (answer,) = await engine.generate(CALL)
        assert answer.finish is FinishReason.STOP
        assert engine.stats.aborts == 2
        server.faults = deque(["abort"] * 3)
        (answer,) = await engine.generate(CALL)
        assert answer.finish is FinishReason.ABORT


async def collected(engine: ReplicaPool) -> list[Delta]:
    return [delta async for delta in engine.stream(CALL)]


async def test_a_stream_is_repeated_until_its_first_piece_and_never_after() -> None:
    bad, good = VllmServer(answers="Hello"), VllmServer(answers="Hello")
    async with pool(bad, good) as engine:
        await all_up(engine, 2)
        bad.faults = deque(["status_503"] * 100)
        for _ in range(4):
            pieces = await collected(engine)
            assert "".join(piece.text for piece in pieces) == "Hello"
            assert pieces[-1].done is not None
            assert pieces[-1].done.replica == good.url
        good.faults = deque(["reset_mid_body"] * 100)
        bad.faults = deque(["reset_mid_body"] * 100)
        with pytest.raises(EngineError):
            await collected(engine)


async def test_a_call_waits_for_a_replica_to_come_back_within_bounds() -> None:
    server = VllmServer()
    async with pool(server) as engine:
        await engine.info()
        await server.stop()
        await until(lambda: not engine.stats.replicas[0].up)
        task = asyncio.create_task(engine.generate(CALL))
        await asyncio.sleep(0.2)
        await server.start()
        (answer,) = await task
        assert answer.turn is not None
    server = VllmServer()
    async with pool(server, patience_s=0.1) as engine:
        await engine.info()
        await server.stop()
        await until(lambda: not engine.stats.replicas[0].up)
        with pytest.raises(EngineError, match="no replica is ready after") as caught:
            await engine.generate(CALL)
        assert (caught.value.code, caught.value.status) == ("no_replica", 503)
        assert server.url in str(caught.value)


async def test_a_replica_behind_is_left_out_until_it_has_the_current_weights() -> None:
    new, old = VllmServer(), VllmServer()
    new.fake.version = old.fake.version = "1"
    async with pool(new, old) as engine:
        await all_up(engine, 2)
        new.fake.version = "2"
        await until(lambda: engine.stats.current_version == "2")
        await until(lambda: not engine.stats.replicas[1].admitted)
        before = asked(old)
        answers = [(await engine.generate(CALL))[0] for _ in range(6)]
        assert asked(old) == before
        assert {answer.policy_version for answer in answers} == {"2"}
        old.fake.version = "2"
        await all_up(engine, 2)
        assert new.resets == old.resets == 1
        for server in (new, old):  # neither finds prefixes that were cached under the old weights
            salts = [body.get("cache_salt") for body in server.generations]
            assert salts[-1] in ("@2", "@1", None)
        assert new.generations[-1]["cache_salt"] == "@2"


async def test_the_trainers_word_decides_where_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "registry" / "policy.json"
    servers = [VllmServer(dev=False), VllmServer(dev=True)]
    servers[1].fake.version = "4"
    async with pool(*servers, file=path) as engine:
        waiting = asyncio.create_task(engine.info())
        await asyncio.sleep(0.1)
        urls = tuple(server.url for server in servers)
        publish(path, RegistryEntry(urls=(None, *urls), model="tiny", policy_version=5))
        assert (await waiting).policy_version == 5
        (answer,) = await engine.generate(CALL)
        assert answer.replica == servers[0].url  # the other one says that it serves 4
        assert answer.policy_version == 5
        assert answer.turn is not None
        assert answer.turn.generation[0].policy_version == 5
        servers[1].fake.version = "5"
        await all_up(engine, 2)
        publish(path, RegistryEntry(urls=urls[1:], model="tiny", policy_version=5))
        await until(lambda: len(engine.stats.replicas) == 1)
        (answer,) = await engine.generate(CALL)
        assert answer.replica == servers[1].url


async def test_a_trainer_that_sets_no_version_on_its_engines_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    servers = [VllmServer(), VllmServer()]  # both tell "default", whatever they are given
    async with pool(*servers, file=path) as engine:
        urls = tuple(server.url for server in servers)
        for version in (5, 6):
            publish(path, RegistryEntry(urls=urls, policy_version=version))
            await engine.info()
            await until(partial(_is_at, engine, version))
            await all_up(engine, 2)
            (answer,) = await engine.generate(CALL)
            assert answer.policy_version == version
        servers[0].fake.version = "6"
        looks = len(servers[0].requests)
        await until(lambda: len(servers[0].requests) > looks + 4)
        servers[0].fake.version = "default"  # it told a version before: it came up anew
        await until(lambda: not engine.stats.replicas[0].admitted)


async def test_a_restarted_replica_is_labelled_with_the_published_weights(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    server = VllmServer(dev=False)
    async with pool(server, file=path) as engine:
        publish(path, RegistryEntry(urls=(server.url,), policy_version=5))
        await engine.info()
        await server.stop()
        await until(lambda: not engine.stats.replicas[0].up)
        await server.start()
        (answer,) = await engine.generate(CALL)
        assert answer.policy_version == 5
        assert server.generations[-1]["cache_salt"] == "@5"


async def test_caches_may_be_left_to_the_trainer(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    server = VllmServer(dev=False)
    async with pool(server, file=path, salt_by_version=False) as engine:
        publish(path, RegistryEntry(urls=(server.url,), policy_version=5))
        (answer,) = await engine.generate(CALL)
        assert answer.policy_version == 5
        assert "cache_salt" not in server.generations[-1]


@pytest.mark.parametrize("other", [VllmServer(model="other"), VllmServer(kind="text")])
async def test_replicas_that_serve_something_else_are_left_out(other: VllmServer) -> None:
    server = VllmServer(model="tiny")
    async with pool(server, other) as engine:
        info = await engine.info()
        await until(lambda: len(other.requests) > 1 and len(server.requests) > 1)
        await asyncio.sleep(0.2)
        assert len([replica for replica in engine.stats.replicas if replica.admitted]) == 1
        assert await engine.info() == info
    async with pool(server, other, model="tiny", wire="completions") as engine:
        await engine.info()
        answers = [(await engine.generate(CALL))[0] for _ in range(6)]
        assert {answer.replica for answer in answers} == {server.url}


async def test_urls_that_are_null_are_left_out_and_all_null_is_an_error() -> None:
    async with VllmServer() as server:
        engine = open_engine(PolicyConfig(**QUICK, urls=[None, server.url, None]))
        assert (await engine.info()).tokens
        await engine.aclose()
    engine = open_engine(PolicyConfig(**{**QUICK, "ready_timeout_s": 0.2}, urls=[None, None]))
    with pytest.raises(EngineError, match="no URL was published"):
        await engine.info()
    await engine.aclose()


async def test_a_config_that_no_server_can_meet_is_the_users_error() -> None:
    async with pool(VllmServer(), VllmServer(), model="other", ready_timeout_s=600) as engine:
        async with asyncio.timeout(60):  # waiting can't mend it
            with pytest.raises(ConfigError, match="not the model 'other'"):
                await engine.info()


async def test_a_call_that_takes_too_long_ends() -> None:
    server = VllmServer()
    async with pool(server, call_timeout_s=0.3) as engine:
        await engine.info()
        server.faults = deque(["slow"] * 10)
        with pytest.raises(EngineError) as caught:
            await engine.generate(CALL)
    assert caught.value.code == "timeout"


async def test_closing_ends_calls_in_flight() -> None:
    server = VllmServer()
    async with pool(server) as engine:
        await engine.info()
        server.delay_s = 30.0
        task = asyncio.create_task(engine.generate(CALL))
        await asyncio.sleep(0.1)
        await engine.aclose()
        with pytest.raises(EngineError):
            await task
        with pytest.raises(EngineError, match="closed"):
            await engine.generate(CALL)


async def test_many_sessions_survive_a_killed_and_restarted_replica() -> None:
    servers = [VllmServer(delay_s=0.01), VllmServer(delay_s=0.01)]
    async with pool(*servers, max_attempts=6) as engine:
        await all_up(engine, 2)

        async def session(name: int) -> list[int]:
            prompt, sampled = PromptSpan([name % 256, 1]), []
            for _ in range(4):
                call = EngineCall(prompt, {"max_tokens": 50}, session=str(name))
                (answer,) = await engine.generate(call)
                assert answer.turn is not None
                sampled.extend(answer.turn.sampled_ids.tolist())
                prompt = PromptSpan(answer.turn.token_ids)
            return sampled

        tasks = [asyncio.create_task(session(name)) for name in range(60)]
        await asyncio.sleep(0.1)
        await servers[0].stop()
        await asyncio.sleep(0.2)
        await servers[0].start()
        results = await asyncio.gather(*tasks)
        undisturbed = await asyncio.gather(*map(session, range(60)))
    assert results == undisturbed


def test_numbers_are_ordered_as_numbers_and_words_by_their_first_sight() -> None:
    versions = Versions()
    assert versions.current([None, None]) is None
    assert versions.current(["9", "10", None, "default"]) == "10"
    assert versions.current(["default"]) == "default"
    assert versions.current(["b"]) == "b"
    assert versions.current(["b", "a"]) == "a"
    versions.published = 3
    assert versions.current(["9"]) == 3
    assert is_current("3", 3)
    assert is_current(None, 3)
    assert not is_current("2", 3)
