import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from rich.console import Console

from rlbridge.contracts.codecs.gym import turns_from_response
from rlbridge.errors import ConfigError, EngineError
from rlbridge.gateway.server import Server, ServerConfig
from rlbridge.prompts import PromptConfig
from rlbridge.rollouts.collect import Pace
from rlbridge.rollouts.config import PlayConfig
from rlbridge.rollouts.run import CollectRun
from rlbridge.rollouts.store import failures_path
from rlbridge.testing import Behaviour, FaultKind, Faults, GymServer, make_row
from rlbridge.testing.byte_tokenizer import ByteTokenizer
from rlbridge.testing.vllm_requests import EngineFault
from rlbridge.testing.vllm_server import VllmServer
from tests.json_lines import read_lines, write_lines

CALL = '<tool_call>\n{"name": "add", "arguments": {"n": 2}}\n</tool_call>'
TOOLS = [{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}]
QUICK = Pace(concurrency=4, attempts=2, backoff_s=0.001, timeout_s=120.0)


def two_calls_then_an_answer(prompt: list[int]) -> str:
    said = ByteTokenizer().decode(prompt, skip_special_tokens=False)
    return CALL if said.count("<tool_response>") < 2 else "The sum is 4"


def environment() -> Behaviour:
    sums: dict[str, int] = {}

    def add(session: str, body: dict[str, Any]) -> dict[str, Any]:
        sums[session] = sums.get(session, 0) + body["n"]
        return {"sum": sums[session]}

    def judged(body: dict[str, Any]) -> float:
        outputs = [i["output"] for i in body["response"]["output"] if "output" in i]
        return 1.0 if outputs == ['{"sum":2}', '{"sum":4}'] else 0.0

    return Behaviour(tools={"add": add}, rewards=judged)


def write_rows(path: Path, count: int, **params: Any) -> Path:
    rows = [make_row(f"task {n}") for n in range(count)]
    for row in rows:
        row["responses_create_params"] |= params
    return write_lines(path, rows)


async def collect(
    folder: Path, rows: Path, pace: Pace = QUICK, prompt: str | None = None, **play: Any
) -> dict[str, Any]:
    with (folder / "said.txt").open("a") as said:
        run = CollectRun(
            PlayConfig(**{"policy_wait_s": 60.0, **play}),
            lambda _name: ByteTokenizer(),
            pace,
            rows,
            folder / "out.jsonl",
            Console(file=said, width=200),
            repeats=2,
            ordered=True,
            prompt=PromptConfig.load(prompt) if prompt else None,
        )
        return await run.execute()


@asynccontextmanager
async def gateway_before(engine: str) -> AsyncIterator[str]:
    """`rlbridge gateway serve` before an engine, in this process."""
    config = ServerConfig.parse({"policy": {"url": engine}})
    async with Server(config, lambda _name: ByteTokenizer()).open() as app:
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_keep_alive=30)
        )
        task = asyncio.create_task(server.serve())
        async with asyncio.timeout(60):
            while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        await task


@pytest.mark.parametrize("before", ["bare engine", "rlbridge gateway"])
async def test_tools_are_answered_in_the_rollouts_session_and_tokens_stay_contiguous(
    tmp_path: Path, before: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 6, tools=TOOLS)
    async with GymServer(environment()) as gym, VllmServer(two_calls_then_an_answer) as engine:
        if before == "bare engine":
            summary = await collect(tmp_path, rows, policy=engine.url, gym=gym.url)
        else:
            async with gateway_before(engine.url) as url:
                summary = await collect(tmp_path, rows, policy=url + "/v1", gym=gym.url)
    assert summary["failed"] == {}
    assert (summary["done"], summary["reward_mean"]) == (12, 1.0)
    assert summary["without_token_fields"] == 0
    assert "exact tokens" in (tmp_path / "said.txt").read_text()
    for row in read_lines(tmp_path / "out.jsonl"):
        turns = turns_from_response(row["response"])
        assert len(turns) == 3
        for turn, after in pairwise(turns):
            known = turn.token_ids
            assert np.array_equal(after.prompt.token_ids[: len(known)], known)


async def test_a_policy_of_text_alone_gives_rows_that_say_nothing_of_tokens(
    tmp_path: Path,
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    async with (
        GymServer(Behaviour(rewards=0.5)) as gym,
        VllmServer("Four.", kind="text") as engine,
    ):
        summary = await collect(tmp_path, rows, policy=engine.url, gym=gym.url)
    assert (summary["done"], summary["without_token_fields"]) == (4, 4)
    assert "TEXT ONLY" in (tmp_path / "said.txt").read_text()
    assert "generation_token_ids" not in (tmp_path / "out.jsonl").read_text()


async def test_an_evaluator_judges_without_any_gym_server(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(make_row("2+2?", expected_answer="4")) + "\n")
    async with VllmServer("So it is \\boxed{4}") as engine:
        summary = await collect(tmp_path, rows, policy=engine.url, evaluator="exact_match")
    assert summary["failed"] == {}
    assert summary["reward_mean"] == 1.0


async def test_options_reach_the_policy_and_the_row_says_what_was_asked(
    tmp_path: Path,
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 2, temperature=0.1)
    async with GymServer(Behaviour(rewards=0.5)) as gym, VllmServer("Four.") as engine:
        play = {"temperature": 0.7, "max_output_tokens": 9}
        await collect(tmp_path, rows, policy=engine.url, gym=gym.url, **play)
        asked = [body for body in engine.generations if body.get("max_tokens") == 9]
    assert [body["temperature"] for body in asked] == [0.7] * 4
    params = read_lines(tmp_path / "out.jsonl")[0]["responses_create_params"]
    assert (params["temperature"], params["max_output_tokens"]) == (0.7, 9)


async def test_a_lost_session_is_a_failure_and_never_a_reward(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 2, tools=TOOLS)
    behaviour = environment()
    behaviour.faults = Faults(rate=1.0, kinds=[FaultKind.SWAPPED_COOKIE])
    behaviour.faulty_routes = ("/add",)
    async with GymServer(behaviour) as gym, VllmServer(two_calls_then_an_answer) as engine:
        summary = await collect(tmp_path, rows, policy=engine.url, gym=gym.url)
    assert summary["done"] == 0
    assert summary["failed"] == {"lost_session": 4}
    failure = read_lines(failures_path(tmp_path / "out.jsonl"))[0]
    assert failure["_rlbridge_attempts"] == 2
    assert "reward" not in failure


async def test_what_the_policy_refuses_is_the_rows_fault_and_tried_once(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    with rows.open("a") as more:
        more.write(json.dumps(make_row("x" * 5000)) + "\n")
    async with GymServer(Behaviour(rewards=0.5)) as gym, VllmServer("Four.") as engine:
        summary = await collect(tmp_path, rows, policy=engine.url, gym=gym.url)
    assert summary["done"] == 2
    assert summary["failed"] == {"policy_refused": 2}
    assert summary["retries"] == 0


async def test_an_engine_that_fails_now_and_then_costs_no_row(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 5, tools=TOOLS)
    async with GymServer(environment()) as gym, VllmServer(two_calls_then_an_answer) as engine:
        engine.faults = deque(
            [None] * 12
            + [EngineFault.STATUS_500, None, EngineFault.ABORT, None, EngineFault.RESET, None]
        )
        summary = await collect(tmp_path, rows, policy=engine.url, gym=gym.url)
    assert (summary["done"], summary["reward_mean"]) == (10, 1.0)


async def test_nobody_at_the_policys_url_is_told_in_time(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 1)
    async with GymServer(Behaviour(rewards=0.5)) as gym:
        nobody = {"policy": "http://127.0.0.1:9", "policy_wait_s": 1.0}
        with pytest.raises(EngineError, match=r"127\.0\.0\.1:9"):
            await collect(tmp_path, rows, gym=gym.url, **nobody)
        async with VllmServer("Four.") as engine:  # and a mended URL needs no further word
            await collect(tmp_path, rows, policy=engine.url, gym=gym.url)
    with pytest.raises(ConfigError, match="starts with http"):
        PlayConfig.parse({"policy": "ftp://a", "evaluator": "math"})


async def test_rows_of_raw_fields_are_collected_by_the_prompt_they_are_trained_with(
    tmp_path: Path,
) -> None:
    source, own = tmp_path / "rows.jsonl", tmp_path / "own.yaml"
    raw = [{"problem": f"{n} + {{x}}", "expected": "ok", "note": None} for n in range(2)]
    write_lines(source, raw)
    own.write_text("user: 'Q: {problem}'\n")
    async with GymServer(Behaviour()) as gym, VllmServer("ok") as engine:
        there = {"policy": engine.url, "gym": gym.url}
        with pytest.raises(ConfigError, match=r"rows\.jsonl:1: .*--prompt"):
            await collect(tmp_path, source, **there)
        await collect(tmp_path, source, prompt="generic/math", **there)
        with pytest.raises(ConfigError, match="prompt"):  # half by one prompt, half by another
            await collect(tmp_path, source, prompt=str(own), **there)
        judged = [body for route, body in gym.behaviour.requests if route == "/verify"]
    made = [PromptConfig.load("generic/math").apply(row) for row in raw]
    asked = [row["responses_create_params"]["input"] for row in read_lines(tmp_path / "out.jsonl")]
    assert asked == [row["responses_create_params"]["input"] for row in made for _ in range(2)]
    assert len(judged) == 4
    for body in judged:
        row = made[body["problem"][0] != "0"]
        assert {key: body[key] for key in row} == row
