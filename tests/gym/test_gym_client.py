"""The client's promises: one answer a question, bounded waits, nothing left behind."""

import asyncio
import multiprocessing
import os
import pickle
from typing import Any

import pytest

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import FailureClass
from rlbridge.errors import ConfigError, ContractError, GymConnectionError, GymTimeoutError
from rlbridge.gym import GymClient
from rlbridge.gym.sync import SyncGymClient
from rlbridge.testing import Faults, GymMock, GymServer, make_message, make_response, make_row

ROW = make_row(expected_answer="4")


async def sent(gym: GymClient, count: int) -> None:
    """Until `count` requests are out."""
    while gym.stats.in_flight < count:  # noqa: ASYNC110 (counters make no noise)
        await asyncio.sleep(0.001)


async def test_check_alive_names_url_attempts_and_what_to_start(
    gym_server: GymServer, quick_config: Any
) -> None:
    await gym_server.stop()
    async with GymClient(quick_config(gym_server.url)) as gym:
        with pytest.raises(GymConnectionError) as error:
            await gym.check_alive(attempts=2)
    assert gym_server.url in str(error.value)
    assert "2 attempts" in str(error.value)
    assert "rlbridge gym serve" in str(error.value)


async def test_check_alive_gives_up_on_a_server_that_hangs(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.delay_s = 30.0
    async with GymClient(quick_config(gym_server.url, verify_timeout_s=0.05)) as gym:
        with pytest.raises(GymTimeoutError):
            await gym.check_alive(attempts=1)


async def test_equal_questions_at_once_are_asked_once(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.delay_s = 0.05
    async with GymClient(quick_config(gym_server.url)) as gym:
        rewards = await gym.verify_batch([(ROW, str(n % 2)) for n in range(16)])
    assert all(reward.valid for reward in rewards)
    assert gym_server.behaviour.verifies == 2
    assert gym.stats.shared == 14
    assert sum(reward.from_cache for reward in rewards) == 14


async def test_a_server_declared_nondeterministic_is_asked_every_time(
    gym_server: GymServer, quick_config: Any
) -> None:
    config = quick_config(gym_server.url, deterministic=False, cache="memory")
    async with GymClient(config) as gym:
        await gym.verify_batch([(ROW, "4")] * 8)
    assert gym_server.behaviour.verifies == 8


async def test_samples_that_read_the_same_share_a_reward_whatever_their_ids(
    gym_server: GymServer, quick_config: Any
) -> None:
    async with GymClient(quick_config(gym_server.url, cache="memory")) as gym:
        for n in range(8):
            row = {**ROW, "_ng_task_index": 0, "_ng_rollout_index": n}
            message = {**make_message("4"), "id": f"msg_{n}", "generation_token_ids": [n]}
            response = make_response(message, id=f"resp_{n}", created_at=n)
            assert (await gym.verify(row, response)).valid
    assert gym_server.behaviour.verifies == 1
    assert gym.stats.cache_hits == 7


async def test_another_task_is_another_question(gym_server: GymServer, quick_config: Any) -> None:
    async with GymClient(quick_config(gym_server.url, cache="memory")) as gym:
        await gym.verify(ROW, "4")
        await gym.verify({**ROW, "expected_answer": "5"}, "4")
        await gym.verify(ROW, "5")
    assert gym_server.behaviour.verifies == 3


async def test_an_invalid_reward_is_never_cached(gym_server: GymServer, quick_config: Any) -> None:
    gym_server.behaviour.faults = Faults(script=["missing_reward"])
    async with GymClient(quick_config(gym_server.url, cache="memory")) as gym:
        first = await gym.verify(ROW, "4")
        second = await gym.verify(ROW, "4")
    assert not first.valid
    assert second.valid
    assert not second.from_cache


async def test_a_file_keeps_rewards_for_the_next_client(
    gym_server: GymServer, quick_config: Any, tmp_path: Any
) -> None:
    gym_server.behaviour.rewards = {"reward": 0.5, "reward_components": {"a": 0.5}}
    config = quick_config(gym_server.url, cache="sqlite", cache_path=str(tmp_path / "cache.db"))
    async with GymClient(config) as gym:
        first = await gym.verify(ROW, "4")
    async with GymClient(config) as gym:
        second = await gym.verify(ROW, "4")
    assert first == second
    assert second.from_cache
    assert gym_server.behaviour.verifies == 1


async def test_cancelling_the_one_who_asks_leaves_the_others_their_reward(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.delay_s = 30.0
    async with GymClient(quick_config(gym_server.url)) as gym:
        asker = asyncio.ensure_future(gym.verify(ROW, "4"))
        await sent(gym, 1)
        waiter = asyncio.ensure_future(gym.verify(ROW, "4"))
        await asyncio.sleep(0)
        asker.cancel()
        gym_server.delay_s = 0.0
        reward = await waiter
    assert asker.cancelled()
    assert reward.valid
    assert (gym.stats.cancelled, gym.stats.valid, gym.stats.in_progress) == (1, 1, 0)


async def test_cancelled_calls_give_their_slots_back(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.delay_s = 30.0
    async with GymClient(quick_config(gym_server.url, max_concurrency=2)) as gym:
        calls = [asyncio.ensure_future(gym.verify(ROW, str(n))) for n in range(6)]
        await sent(gym, 2)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        gym_server.delay_s = 0.0
        reward = await gym.verify(ROW, "later")
    assert reward.valid
    assert gym.stats.cancelled == 6
    assert gym.stats.in_flight == 0


async def test_no_more_than_max_concurrency_are_out(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.delay_s = 0.01
    peak = 0

    def note(_index: int, _reward: Any) -> None:
        nonlocal peak
        peak = max(peak, gym.stats.in_flight + 1)  # itself has just been counted out

    async with GymClient(quick_config(gym_server.url, max_concurrency=3)) as gym:
        calls = [gym.verify(ROW, str(n)) for n in range(20)]
        gym.observers.append(lambda _route, reward: note(0, reward))
        await asyncio.gather(*calls)
    assert peak <= 3
    assert gym.stats.valid == 20


async def test_a_full_queue_has_an_end(gym_server: GymServer, quick_config: Any) -> None:
    gym_server.delay_s = 30.0
    config = quick_config(gym_server.url, max_concurrency=1, queue_timeout_s=0.05, max_attempts=1)
    async with GymClient(config) as gym:
        first = asyncio.ensure_future(gym.verify(ROW, "first"))
        await sent(gym, 1)
        queued = await gym.verify(ROW, "queued")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert not queued.valid
    assert queued.failure is FailureClass.TIMEOUT
    assert queued.attempts == 0


async def test_retry_after_beyond_the_budget_ends_the_call(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.behaviour.faults = Faults(rate=1.0, kinds=["status_503"])
    async with GymClient(quick_config(gym_server.url, total_timeout_s=0.01)) as gym:
        reward = await gym.verify(ROW, "4")
    assert not reward.valid
    assert reward.attempts == 1


async def test_a_tool_is_called_once_unless_it_is_idempotent(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.behaviour.tools = {"add": lambda _session, body: {"sum": body["a"] + 1}}
    gym_server.behaviour.faulty_routes = ("/add",)
    gym_server.behaviour.faults = Faults(script=["status_500", "status_500"])
    async with GymClient(quick_config(gym_server.url)) as gym, gym.session(ROW) as session:
        with pytest.raises(Exception, match="500"):
            await session.call_tool("add", {"a": 1})
        assert await session.call_tool("add", {"a": 1}, idempotent=True) == {"sum": 2}
    assert sum(route == "/add" for route, _ in gym_server.behaviour.requests) == 3


async def test_sessions_keep_to_their_own_cookies(gym_server: GymServer, quick_config: Any) -> None:
    seen: dict[str, list[str]] = {}
    gym_server.behaviour.tools = {"who": lambda session, body: {"session": session}}
    async with GymClient(quick_config(gym_server.url)) as gym:

        async def rollout(name: str) -> None:
            async with gym.session(ROW) as session:
                answers = [await session.call_tool("who") for _ in range(3)]
                seen[name] = [answer["session"] for answer in answers]
                assert (await session.verify(name)).valid

        await asyncio.gather(*(rollout(str(n)) for n in range(5)))
    assert all(len(set(sessions)) == 1 for sessions in seen.values())
    assert len({sessions[0] for sessions in seen.values()}) == 5


async def test_several_urls_share_the_work_and_survive_one_of_them(
    gym_server: GymServer, quick_config: Any
) -> None:
    async with GymServer() as second:
        gym_server.delay_s = second.delay_s = 0.01
        config = quick_config(gym_server.url, urls=(second.url,), breaker_failures=2)
        async with GymClient(config) as gym:
            await gym.verify_batch([(ROW, str(n)) for n in range(40)])
            assert gym_server.behaviour.verifies == second.behaviour.verifies == 20
            await second.stop()
            rewards = await gym.verify_batch([(ROW, str(n)) for n in range(40, 80)])
    assert all(reward.valid for reward in rewards)


async def test_callers_mistakes_raise_and_are_not_counted(
    gym_server: GymServer, quick_config: Any
) -> None:
    async with GymClient(quick_config(gym_server.url)) as gym:
        for row, response in [
            ("row", "4"),
            (ROW, None),
            (ROW, 4),
            (ROW, [1]),
            (ROW, {"text": "4"}),
            ({**ROW, "x": object()}, "4"),
        ]:
            with pytest.raises(ContractError):
                await gym.verify(row, response)  # type: ignore[arg-type]
        with pytest.raises(ContractError):
            await gym.session(ROW).verify("4")
    assert gym.stats.verifies == 0
    with pytest.raises(ContractError, match="closed"):
        await gym.verify(ROW, "4")


async def test_text_that_is_no_utf8_is_sent_with_replacement_characters(
    gym_server: GymServer, quick_config: Any
) -> None:
    async with GymClient(quick_config(gym_server.url)) as gym:
        assert (await gym.verify(ROW, "4 \ud800!")).valid
    _, body = gym_server.behaviour.requests[0]
    assert body["response"]["output"][0]["content"][0]["text"] == "4 \ufffd!"


async def test_aggregate_run_and_seed_go_their_routes(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.behaviour.tools = {"run": lambda _session, body: {**body, "reward": 0.75}}
    async with GymClient(quick_config(gym_server.url)) as gym:
        await gym.seed_session(ROW)
        reward, answer = await gym.run(ROW)
        metrics = await gym.aggregate_metrics(
            [{"_ng_task_index": 0, "_ng_rollout_index": 0, "reward": 1.0}]
        )
    assert reward.valid
    assert (reward.value, answer["expected_answer"]) == (0.75, "4")
    assert metrics["key_metrics"] == {"mean/reward": 1.0}


async def test_an_agents_failure_is_a_reason_and_no_exception(
    gym_server: GymServer, quick_config: Any
) -> None:
    gym_server.behaviour.tools = {"run": lambda _session, body: {}}
    gym_server.behaviour.faulty_routes = ("/run",)
    gym_server.behaviour.faults = Faults(rate=1.0, kinds=["status_500"])
    async with GymClient(quick_config(gym_server.url)) as gym:
        reward, answer = await gym.run(ROW)
    assert not reward.valid
    assert (reward.attempts, answer) == (1, {})


def test_a_client_serves_one_loop_after_another() -> None:
    async def ask(gym: GymClient) -> bool:
        async with GymServer() as server:
            gym.config = GymConfig(url=server.url)
            return (await gym.verify(ROW, "4")).valid

    gym = GymClient()
    assert asyncio.run(ask(gym))
    assert asyncio.run(ask(gym))
    asyncio.run(gym.aclose())
    assert gym.stats.valid == 2


def test_a_client_pickles_as_its_config() -> None:
    gym = pickle.loads(pickle.dumps(GymClient(url="http://127.0.0.1:1")))  # noqa: S301 (our own)
    assert gym.config.url == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    "fields",
    [{"url": "127.0.0.1:80"}, {"cache": "sqlite"}, {"http2": True}, {"verify_timeout": 1}],
)
def test_a_wrong_config_is_refused_at_birth(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        GymClient(**fields)


async def test_secrets_are_sent_and_never_told(
    gym_mock: GymMock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="rlbridge")
    gym_mock.behaviour.faults = Faults(rate=1.0, kinds=["status_500"])
    config = gym_mock.config(headers={"Authorization": "Bearer TOPSECRET"}, max_attempts=2)
    async with GymClient(config) as gym:
        reward = await gym.verify(make_row("PRIVATE"), "PRIVATE")
    sent = gym_mock.router.calls[0].request.headers["authorization"]
    assert sent == "Bearer TOPSECRET"
    told = f"{reward} {config} {gym.stats.snapshot()} {[r.__dict__ for r in caplog.records]}"
    assert "TOPSECRET" not in told
    assert "PRIVATE" not in told


def _verify_in_child(config: GymConfig, results: Any) -> None:
    results.put((os.getpid(), SyncGymClient.shared(config).verify(ROW, "child").valid))


async def test_the_sync_client_works_inside_a_running_loop_and_in_a_fork(
    gym_server: GymServer, quick_config: Any
) -> None:
    config = quick_config(gym_server.url)
    gym = SyncGymClient.shared(config)
    assert SyncGymClient.shared(config) is gym
    # On a thread, for the server under test lives in this very loop.
    assert (await asyncio.to_thread(gym.verify, ROW, "4")).valid
    batch = await asyncio.to_thread(gym.verify_batch, [(ROW, "5"), (ROW, "6")])
    assert [reward.valid for reward in batch] == [True, True]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_verify_in_child, args=(config, results))
    child.start()
    pid, valid = await asyncio.to_thread(results.get, True, 60)
    await asyncio.to_thread(child.join)
    assert valid
    assert pid != os.getpid()
    await asyncio.to_thread(gym.close)
    results.close()
    results.join_thread()
