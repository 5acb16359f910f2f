"""What `rlbridge gym check` says to a reader, of servers that behave and of others."""

import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlbridge.cli.gym import app
from rlbridge.errors import ConfigError, GymConnectionError
from rlbridge.testing import Faults, GymServer, make_response, make_row

ROW = make_row(expected_answer="4")


@pytest.fixture
def check(gym_server: GymServer, tmp_path: Path) -> Any:
    """Check the server with these rows: exit status and lines."""

    async def run(*rows: dict[str, Any]) -> tuple[int, list[str]]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        command = ["check", gym_server.url, "--rows", str(file)]
        done = await asyncio.to_thread(CliRunner().invoke, app, command)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        lines = done.output.splitlines()
        return done.exit_code, [line for line in lines if not line.startswith("latency: median ")]

    return run


async def test_a_good_server_gets_a_clean_report(check: Any, gym_server: GymServer) -> None:
    gym_server.behaviour.required = ("expected_answer",)
    status, lines = await check(ROW, {**ROW, "response": make_response("4")})
    assert status == 0
    assert lines == [
        f"{gym_server.url}: 2 of 2 rows judged",
        "same verdict twice: 2 of 2",
        "rows that are wrong on purpose:",
        "  without responses_create_params: refused (422)",
        "  without the verifier's fields: refused (422)",
        "  with an unknown parameter: refused (422)",
    ]


async def test_a_rows_own_response_is_what_gets_judged(check: Any, gym_server: GymServer) -> None:
    await check({**ROW, "response": make_response("mine")})
    route, body = gym_server.behaviour.requests[0]
    assert route == "/verify"
    assert body["response"]["output"][0]["content"][0]["text"] == "mine"


async def test_rows_that_are_refused_are_named_with_the_reason(
    check: Any, gym_server: GymServer
) -> None:
    gym_server.behaviour.required = ("expected_answer",)
    status, lines = await check(ROW, make_row())
    assert status == 2
    assert lines[:3] == [
        f"{gym_server.url}: 1 of 2 rows judged",
        "same verdict twice: 1 of 1",
        "rows[1]: bad_row: 422: body.expected_answer: Field required",
    ]


async def test_a_verdict_that_varies_is_told_with_what_to_do(
    check: Any, gym_server: GymServer
) -> None:
    verdicts = count()
    gym_server.behaviour.rewards = lambda _body: float(next(verdicts))
    status, lines = await check(ROW)
    assert status == 2
    assert lines[1:3] == ["same verdict twice: 0 of 1", "rows[0]: two verdicts: 0.0 and 1.0"]
    assert sum("set gym.deterministic: false" in line for line in lines) == 1


async def test_a_server_that_judges_rows_without_their_fields_is_a_trap(
    check: Any, gym_server: GymServer
) -> None:
    gym_server.behaviour.rewards = 0.5
    status, lines = await check(ROW)
    assert status == 0
    assert "  without the verifier's fields: judged: reward 0.5" in lines
    assert lines[-1].startswith("warning: a row without the verifier's fields gets a reward")


async def test_a_server_that_breaks_is_not_said_to_refuse(
    check: Any, gym_server: GymServer
) -> None:
    gym_server.behaviour.faults = Faults(rate=1.0, kinds=["nan"])
    status, lines = await check(ROW)
    assert status == 2
    assert "rows[0]: non_finite: $.reward is nan" in lines
    assert "  without the verifier's fields: neither judged nor refused: non_finite (200)" in lines


async def test_parameters_that_gym_does_not_know_are_named(
    check: Any, gym_server: GymServer
) -> None:
    params = {**ROW["responses_create_params"], "stop": ["\n"]}
    status, lines = await check({**ROW, "responses_create_params": params})
    assert status == 2
    assert "responses_create_params.stop" in lines[2]
    assert "doesn't know: stop; set gym.unknown_params: drop" in lines[-1]


async def test_nobody_there_and_no_rows_are_errors(check: Any, gym_server: GymServer) -> None:
    with pytest.raises(ConfigError, match="holds no rows"):
        await check()
    await gym_server.stop()
    with pytest.raises(GymConnectionError, match="no Gym server answers"):
        await check(ROW)
