"""Every fault of the matrix, over real sockets, by both transports."""

import asyncio
from typing import Any

import pytest

from rlbridge.contracts.reward import FailureClass
from rlbridge.gym import GymClient
from rlbridge.testing import FaultKind, Faults, GymServer, make_row

EXPECTED = {
    FaultKind.RESET: FailureClass.CONNECTION,
    FaultKind.RESET_MID_BODY: FailureClass.CONNECTION,
    FaultKind.SLOW: FailureClass.TIMEOUT,
    FaultKind.SLOW_BODY: FailureClass.TIMEOUT,
    FaultKind.STATUS_500: FailureClass.SERVER_ERROR,
    FaultKind.STATUS_503: FailureClass.SERVER_ERROR,
    FaultKind.STATUS_429: FailureClass.RATE_LIMITED,
    FaultKind.STATUS_422: FailureClass.BAD_ROW,
    FaultKind.TRUNCATED_JSON: FailureClass.MALFORMED_BODY,
    FaultKind.WRONG_CONTENT_TYPE: FailureClass.MALFORMED_BODY,
    FaultKind.NAN: FailureClass.NON_FINITE,
    FaultKind.INFINITY: FailureClass.NON_FINITE,
    FaultKind.NULL_REWARD: FailureClass.MISSING_REWARD,
    FaultKind.STRING_REWARD: FailureClass.MISSING_REWARD,
    FaultKind.TRUE_REWARD: FailureClass.MISSING_REWARD,
    FaultKind.MISSING_REWARD: FailureClass.MISSING_REWARD,
    FaultKind.GARBAGE: FailureClass.MALFORMED_BODY,
    FaultKind.REDIRECT: FailureClass.WRONG_SERVER,
    FaultKind.REPORTED: FailureClass.REPORTED,
}
RETRIED = {
    FailureClass.CONNECTION,
    FailureClass.TIMEOUT,
    FailureClass.SERVER_ERROR,
    FailureClass.RATE_LIMITED,
    FailureClass.MALFORMED_BODY,
}
ROW = make_row(expected_answer="4")


@pytest.mark.parametrize("kind", EXPECTED, ids=str)
async def test_a_fault_is_an_invalid_reward_of_its_class(
    gym_server: GymServer, quick_config: Any, kind: FaultKind
) -> None:
    gym_server.behaviour.faults = Faults(rate=1.0, kinds=[kind])
    deadline_s = 0.3 if EXPECTED[kind] is FailureClass.TIMEOUT else 60.0
    config = quick_config(gym_server.url, max_attempts=2, verify_timeout_s=deadline_s)
    async with GymClient(config) as gym:
        reward = await gym.verify(ROW, "4")
    assert not reward.valid
    assert reward.failure is EXPECTED[kind]
    assert reward.attempts == (2 if EXPECTED[kind] in RETRIED else 1)
    if reward.failure is not FailureClass.TIMEOUT:  # a busy machine may not get to send in time
        assert reward.attempts == gym_server.behaviour.verifies
    assert gym.stats.invalid == {EXPECTED[kind]: 1}


@pytest.mark.parametrize("kind", [k for k in EXPECTED if EXPECTED[k] in RETRIED], ids=str)
async def test_a_passing_fault_costs_an_attempt_and_no_reward(
    gym_server: GymServer, quick_config: Any, kind: FaultKind
) -> None:
    gym_server.behaviour.rewards = 0.25
    gym_server.behaviour.faults = Faults(script=[kind])
    late = EXPECTED[kind] is FailureClass.TIMEOUT
    patient = {"verify_timeout_s": 1.0, "max_attempts": 60, "breaker_failures": 60}
    async with GymClient(quick_config(gym_server.url, **(patient if late else {}))) as gym:
        reward = await gym.verify(ROW, "4")
    assert reward.valid
    assert reward.value == 0.25
    assert reward.attempts == 1 + sum(gym.stats.failures.values())
    if late:  # a busy machine may be late another time
        assert reward.attempts >= 2
    else:
        assert reward.attempts == 2


@pytest.mark.parametrize("kind", [FaultKind.DROPPED_COOKIE, FaultKind.SWAPPED_COOKIE], ids=str)
async def test_a_session_whose_cookie_is_dropped_or_swapped_is_not_scored(
    gym_server: GymServer, quick_config: Any, kind: FaultKind
) -> None:
    gym_server.behaviour.faults = Faults(script=[kind])
    async with GymClient(quick_config(gym_server.url)) as gym, gym.session(ROW) as session:
        first = await session.verify("4")
        second = await session.verify("4")
    assert not first.valid
    assert first.failure is FailureClass.LOST_SESSION
    assert not second.valid, "once lost, a session stays lost"


async def test_a_server_that_was_down_meanwhile_has_lost_its_sessions(
    gym_server: GymServer, quick_config: Any
) -> None:
    async with GymClient(quick_config(gym_server.url, max_attempts=1)) as gym:
        async with gym.session(ROW) as session:
            await gym_server.stop()
            refused = await session.verify("4")
            await gym.verify(ROW, "4")  # refused too, on a connection of its own
            await gym_server.start()
            after = await session.verify("4")
        async with gym.session(ROW) as fresh_session:
            fresh = await fresh_session.verify("4")
    assert not refused.valid
    assert refused.failure is FailureClass.CONNECTION
    assert not after.valid
    assert after.failure is FailureClass.LOST_SESSION
    assert fresh.valid


async def test_a_refused_connection_is_told_from_other_failures(
    gym_server: GymServer, quick_config: Any
) -> None:
    await gym_server.stop()
    async with GymClient(quick_config(gym_server.url, max_attempts=3)) as gym:
        reward = await gym.verify(ROW, "4")
    assert not reward.valid
    assert (reward.failure, reward.attempts) == (FailureClass.CONNECTION, 3)


async def test_a_restarted_server_is_asked_again_and_nothing_is_lost(
    gym_server: GymServer, quick_config: Any
) -> None:
    config = quick_config(gym_server.url, outage_patience_s=20.0, breaker_failures=3)
    async with GymClient(config) as gym:
        await gym_server.stop()
        down = asyncio.ensure_future(gym.verify_batch([(ROW, str(n)) for n in range(40)]))
        while gym.stats.failures[FailureClass.CONNECTION] < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        await gym_server.start()
        rewards = await down
    assert [reward.valid for reward in rewards] == [True] * 40
    assert gym.stats.valid == 40


async def test_a_dead_server_fails_the_next_calls_at_once(
    gym_server: GymServer, quick_config: Any
) -> None:
    await gym_server.stop()
    config = quick_config(gym_server.url, breaker_failures=3, breaker_probe_s=60.0)
    async with GymClient(config) as gym:
        await gym.verify_batch([(ROW, str(n)) for n in range(8)])
        sent = gym.stats.attempts["verify"]
        reward = await gym.verify(ROW, "later")
    assert not reward.valid
    assert reward.failure is FailureClass.UNAVAILABLE
    assert gym.stats.attempts["verify"] == sent


def _fraction(body: dict[str, Any]) -> float:
    return int(body["response"]["output"][0]["content"][0]["text"]) / 1000


async def test_thirty_percent_faults_invent_lose_and_double_nothing(
    gym_server: GymServer, quick_config: Any
) -> None:
    kinds = [kind for kind in EXPECTED if EXPECTED[kind] is not FailureClass.TIMEOUT]
    gym_server.behaviour.rewards = _fraction
    gym_server.behaviour.faults = Faults(rate=0.3, kinds=kinds, seed=5)
    seen: list[int] = []
    async with GymClient(quick_config(gym_server.url, max_concurrency=16)) as gym:
        rewards = await gym.verify_batch(
            [(ROW, str(n)) for n in range(300)], on_done=lambda index, _: seen.append(index)
        )
    assert sorted(seen) == list(range(300))
    valid = {n: reward.value for n, reward in enumerate(rewards) if reward.valid}
    assert all(value == n / 1000 for n, value in valid.items())
    assert 0 < len(valid) < 300
    assert gym.stats.valid == len(valid)
    assert sum(gym.stats.invalid.values()) == 300 - len(valid)
    assert gym.stats.in_progress == 0
