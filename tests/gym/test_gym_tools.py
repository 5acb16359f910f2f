"""Tool calls as a policy writes them, answered by a server on a real socket."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from rlbridge.errors import GymConnectionError, GymError
from rlbridge.gym import GymClient
from rlbridge.gym.tools import answer_calls
from rlbridge.testing import Faults, GymServer, make_row
from rlbridge.testing.server import gym_server


def _call(name: str, arguments: Any = "{}", call_id: str = "c1") -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _client(server: GymServer, **fields: Any) -> GymClient:
    quick = {"backoff_initial_s": 0.001, "outage_patience_s": 0.0, "breaker_probe_s": 0.01}
    return GymClient(url=server.url, **{**quick, **fields})


def _counter() -> dict[str, Any]:
    counts: dict[str, int] = {}

    def add(session: str, body: dict[str, Any]) -> dict[str, int]:
        counts[session] = counts.get(session, 0) + int(body["count"])
        return {"count": counts[session]}

    return {"add": add, "long": lambda _session, _body: "x" * 100}


async def _answers(
    server: GymServer, calls: list[dict[str, Any]], **options: Any
) -> list[dict[str, Any]]:
    async with _client(server) as gym, gym.session(make_row()) as session:
        return await answer_calls(session, calls, **options)


@pytest.mark.parametrize("parallel", [False, True])
async def test_answers_come_in_the_order_of_the_calls_and_share_the_session(
    parallel: bool,
) -> None:
    async with gym_server(tools=_counter()) as server:
        calls = [_call("add", {"count": n}, f"c{n}") for n in (1, 2)]
        calls.append(_call("add", '{"count": 4}', "c4"))
        answers = await _answers(server, calls, parallel=parallel)
    assert [answer["tool_call_id"] for answer in answers] == ["c1", "c2", "c4"]
    assert {answer["role"] for answer in answers} == {"tool"}
    counts = [json.loads(answer["content"])["count"] for answer in answers]
    assert max(counts) == 7
    if not parallel:
        assert counts == [1, 3, 7]


async def test_what_a_call_gets_wrong_is_told_to_the_policy_and_counted() -> None:
    failures: Counter[str] = Counter()
    async with gym_server(tools=_counter()) as server:
        answers = await _answers(
            server,
            [_call("subtract"), _call("add", "{count: 1"), _call("add", "[1]"), {"id": "c9"}],
            failures=failures,
        )
        asked = [route for route, _ in server.behaviour.requests]
    assert all("error" in json.loads(answer["content"]) for answer in answers)
    assert failures == {"unknown_tool": 2, "bad_arguments": 2}
    assert "127.0.0.1" not in str(answers)
    assert asked == ["/seed_session"]


@pytest.mark.parametrize("name", ["verify", "seed_session", "aggregate_metrics", "..", "a/b", ""])
async def test_a_policy_cannot_reach_a_route_that_is_no_tool(name: str) -> None:
    async with gym_server(rewards=1.0) as server:
        (answer,) = await _answers(server, [_call(name)])
        asked = [route for route, _ in server.behaviour.requests]
    assert "no tool named" in answer["content"]
    assert asked == ["/seed_session"]


async def test_a_tool_that_was_not_offered_is_not_asked() -> None:
    async with gym_server(tools=_counter()) as server:
        (answer,) = await _answers(server, [_call("add", {"count": 1})], tools=("long",))
        assert server.behaviour.requests[-1][0] == "/seed_session"
    assert "no tool named" in answer["content"]


async def test_a_long_answer_is_cut_and_says_so() -> None:
    async with gym_server(tools=_counter()) as server:
        (answer,) = await _answers(server, [_call("long")], max_output_chars=10)
    assert answer["content"] == '"' + "x" * 9 + "\n[cut: 10 of 102 characters shown]"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("status_500", "server_error"),
        ("status_422", "refused"),
        ("slow", "timeout"),
        ("truncated_json", "malformed_answer"),
    ],
)
async def test_a_tool_that_fails_is_an_observation_and_is_not_called_twice(
    fault: str, kind: str
) -> None:
    failures: Counter[str] = Counter()
    async with gym_server(
        tools=_counter(), faults=Faults(script=[fault]), faulty_routes=("/add",)
    ) as server:
        async with (
            _client(server, tool_timeout_s=0.3 if fault == "slow" else 60.0) as gym,
            gym.session(make_row()) as session,
        ):
            (answer,) = await answer_calls(session, [_call("add", {"count": 1})], failures=failures)
            reward = await session.verify("done")
        calls = [route for route, _ in server.behaviour.requests if route == "/add"]
    assert "error" in json.loads(answer["content"])
    assert failures == {kind: 1}
    if fault == "slow":  # a busy machine may not get to send it in time
        assert len(calls) <= 1
    else:
        assert len(calls) == 1
    assert reward.valid


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_session_whose_server_went_away_raises_and_is_never_scored(
    parallel: bool,
) -> None:
    async with (
        gym_server(tools=_counter()) as server,
        _client(server) as gym,
        gym.session(make_row()) as session,
    ):
        await server.stop()
        with pytest.raises(GymConnectionError):
            await answer_calls(session, [_call("add", {"count": 1})] * 2, parallel=parallel)
        await server.start()
        await asyncio.sleep(0.05)
        reward = await session.verify("done")
    assert not reward.valid
    assert reward.failure == "lost_session"


async def test_a_session_whose_cookie_was_swapped_raises() -> None:
    async with gym_server(
        tools=_counter(), faults=Faults(script=["swapped_cookie"]), faulty_routes=("/add",)
    ) as server:
        with pytest.raises(GymError, match="session"):
            await _answers(server, [_call("add", {"count": 1})])
