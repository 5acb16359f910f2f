"""`/run` and `/generate`: a real gateway and Gym client, an engine that says what it is told."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from core_kit import MODEL, TOKENIZER, ScriptedEngine

from rlbridge.errors import EngineError
from rlbridge.gateway.agent import Agent, AgentConfig
from rlbridge.gateway.agent_routes import agent_router
from rlbridge.gateway.app import create_app
from rlbridge.gateway.gateway import Gateway
from rlbridge.gym import GymClient
from rlbridge.plugins import Plugins
from rlbridge.testing import Faults, make_row
from rlbridge.testing.server import gym_server

ADD = '<tool_call>\n{"name": "add", "arguments": {"count": 3}}\n</tool_call>'
TOOL = {"type": "function", "name": "add", "description": "", "strict": None,
        "parameters": {"type": "object", "properties": {"count": {"type": "integer"}}}}  # fmt: skip


def tool_row(**fields: Any) -> dict[str, Any]:
    row = make_row("Count.", **fields)
    row["responses_create_params"]["tools"] = [TOOL]
    return row


def counter() -> dict[str, Any]:
    counts: dict[str, int] = {}

    def add(session: str, body: dict[str, Any]) -> dict[str, int]:
        counts[session] = counts.get(session, 0) + int(body["count"])
        return {"count": counts[session]}

    return {"add": add}


@asynccontextmanager
async def asking(
    *answers: Any, gym: str = "", evaluator: str = "", **config: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedEngine, Gateway]]:
    engine = ScriptedEngine(deque(answers))
    client = None
    if gym:
        quick = {"backoff_initial_s": 0.001, "outage_patience_s": 0.0, "max_attempts": 2}
        client = GymClient(url=gym, **quick)
    judge = Plugins().evaluator(evaluator) if evaluator else None
    async with Gateway(engine, TOKENIZER) as gateway:
        agent = Agent(gateway, gym=client, evaluator=judge, config=AgentConfig(**config))
        app = create_app(gateway, routers=[agent_router(agent)])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as ask:
            yield ask, engine, gateway
    for opened in (client, judge):
        if opened is not None:
            await opened.aclose()


async def test_a_rollout_with_tools_is_judged_in_its_own_session() -> None:
    async with (
        gym_server(rewards=0.5, tools=counter()) as server,
        asking(ADD, ADD, "It is 6.", gym=server.url) as (ask, engine, _),
    ):
        answer = await ask.post("/run", json=tool_row(expected="kept"))
    document = answer.json()
    assert answer.status_code == 200, answer.text
    assert document["reward"] == 0.5
    assert document["expected"] == "kept"
    output = document["response"]["output"]
    told = [item["output"] for item in output if item["type"] == "function_call_output"]
    assert told == ['{"count":3}', '{"count":6}']
    assert len(engine.calls) == 3
    seen: list[int] = []
    for item in (item for item in output if item.get("generation_token_ids")):
        assert item["prompt_token_ids"][: len(seen)] == seen
        seen = item["prompt_token_ids"] + item["generation_token_ids"]
    assert document["response"]["usage"]["output_tokens"] == sum(
        len(item.get("generation_token_ids", ())) for item in output
    )


@pytest.mark.parametrize(("fault", "status", "failure"), [
    ("status_500", 503, "server_error"), ("missing_reward", 422, "missing_reward"),
    ("nan", 422, "non_finite"), ("reported", 503, "reported"),
])  # fmt: skip
async def test_without_a_valid_reward_run_is_an_error_and_never_zero(
    fault: str, status: int, failure: str
) -> None:
    faults = Faults(script=[fault] * 4)
    async with (
        gym_server(rewards=1.0, faults=faults) as server,
        asking("Done.", gym=server.url) as (ask, _, _),
    ):
        answer = await ask.post("/run", json=make_row())
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == f"invalid_reward_{failure}"
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "reward" not in answer.json()


async def test_a_marked_rollout_has_no_number_for_a_reward() -> None:
    faults = Faults(script=["missing_reward"] * 2)
    async with (
        gym_server(rewards=1.0, faults=faults) as server,
        asking("Done.", gym=server.url, on_invalid="mark") as (ask, _, _),
    ):
        answer = await ask.post("/run", json=make_row(instance_config={"a": 1}))
    document = answer.json()
    assert answer.status_code == 200
    assert document["reward"] is None
    assert document["_ng_failure_class"] == "missing_reward"
    assert document["mask_sample"] is True
    assert document["instance_config"] == {"a": 1, "mask_sample": True}
    assert document["response"]["output"]


async def test_generate_gives_the_row_back_with_a_verdict_or_the_reason_for_none() -> None:
    async with asking("<think>\n.\n</think>\n\nIt is 4.", "No.", evaluator="arithmetic") as (
        ask,
        _,
        _,
    ):
        right = await ask.post("/generate", json=make_row(expected_answer="4", tag="x"))
        unjudged = await ask.post(
            "/generate", json={"messages": [{"role": "user", "content": "?"}]}
        )
    document = right.json()
    assert (document["reward"], document["tag"]) == (1.0, "x")
    assert document["generation"].strip() == "It is 4."
    assert document["num_generated_tokens"] > 4
    assert unjudged.status_code == 200
    assert unjudged.json()["reward"] is None
    assert unjudged.json()["reward_failure"]["class"] == "bad_row"


async def test_a_gym_that_is_gone_is_no_reward_and_asks_the_policy_nothing() -> None:
    async with gym_server() as server:
        url = server.url
    async with asking("Done.", gym=url) as (ask, engine, _):
        answer = await ask.post("/run", json=make_row())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "invalid_reward_connection"
    assert engine.calls == []


async def test_a_policy_that_fails_is_its_error_and_no_reward() -> None:
    broken = EngineError("no such luck", status=400, code="bad", param="temperature")
    async with gym_server(rewards=1.0) as server, asking(broken, gym=server.url) as (ask, _, _):
        answer = await ask.post("/run", json=make_row())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"


async def test_steps_have_an_end() -> None:
    async with (
        gym_server(rewards=1.0, tools=counter()) as server,
        asking(*[ADD] * 9, gym=server.url, max_steps=3) as (ask, engine, _),
    ):
        answer = await ask.post("/run", json=tool_row())
    assert answer.status_code == 200
    assert len(engine.calls) == 3
    assert answer.json()["response"]["output"][-1]["type"] == "function_call"


async def test_a_named_session_stays_open_and_carries_the_reward() -> None:
    async with (
        gym_server(rewards=0.25) as server,
        asking("Done.", "Done.", gym=server.url) as (ask, _, gateway),
    ):
        named = await ask.post("/s/mine/run", json=make_row())
        own = await ask.post("/run", json=make_row())
        rollout = await gateway.rollout("mine")
        left = gateway.counts()["sessions"]
    assert (named.status_code, own.status_code) == (200, 200)
    assert rollout.reward is not None
    assert rollout.reward.valid
    assert rollout.reward.value == 0.25
    assert left == 1


@pytest.mark.parametrize("row", [
    {}, {"responses_create_params": None}, {"responses_create_params": {}},
    {"responses_create_params": {"input": 3}}, [],
])  # fmt: skip
async def test_what_is_no_row_is_refused(row: Any) -> None:
    async with asking(evaluator="arithmetic") as (ask, engine, _):
        answer = await ask.post("/run", json=row)
    assert answer.status_code == 422
    assert engine.calls == []


async def test_gyms_seven_fields_are_there(  # a Responses object a verifier accepts
) -> None:
    async with asking("4", evaluator="arithmetic") as (ask, _, _):
        answer = await ask.post("/run", json=make_row(expected_answer="4"))
    response = answer.json()["response"]
    assert {
        "id",
        "created_at",
        "model",
        "object",
        "parallel_tool_calls",
        "tool_choice",
        "tools",
    } <= (response.keys())
    assert response["model"] == MODEL
