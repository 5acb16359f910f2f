import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlbridge.errors import ConfigError
from rlbridge.rollouts.collect import Pace
from rlbridge.rollouts.rescore_run import Judge, RescoreRun
from rlbridge.rollouts.store import failures_path
from rlbridge.testing import (
    Behaviour,
    FaultKind,
    Faults,
    GymServer,
    make_message,
    make_row,
    make_tool_call,
)
from rlbridge.testing.behaviour import Answer
from tests.json_lines import read_lines, write_lines

QUICK = Pace(concurrency=4, attempts=2, backoff_s=0.001, timeout_s=120.0)


def rollout(number: int, text: str, **fields: Any) -> dict[str, Any]:
    row = make_row(f"task {number}", expected_answer="4")
    indices = {"_ng_task_index": number, "_ng_rollout_index": 0}
    return {**row, "response": {"output": [make_message(text)]}, **indices, **fields}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    return write_lines(path, rows)


async def rescore(source: Path, judge: Judge, **options: Any) -> dict[str, Any]:
    output = source.with_name("new.jsonl")
    with source.with_name("said.txt").open("a") as said:
        console = Console(file=said, width=200)
        return await RescoreRun(judge, QUICK, source, output, console, **options).execute()


async def test_a_row_that_would_reach_its_judge_rounded_is_refused_by_line(tmp_path: Path) -> None:
    rows = [
        rollout(0, "4", seed=2**64 - 1, logprob=-0.00012345678901234567),
        rollout(1, "4", seed=2**64),
    ]
    source = write(tmp_path / "old.jsonl", *rows)
    with pytest.raises(ConfigError, match=r"old.jsonl:2: \$.seed is an integer beyond 64 bits"):
        await rescore(source, Judge(evaluator="exact_match"))
    assert not source.with_name("new.jsonl").exists()


async def test_new_verdicts_stand_beside_the_old_ones_and_the_table_counts_the_changes(
    tmp_path: Path,
) -> None:
    source = write(
        tmp_path / "old.jsonl",
        rollout(0, "\\boxed{4}", reward=1.0, reward_components={"a": 0.5}),
        rollout(1, "\\boxed{4}", reward=0.0),
        rollout(2, "\\boxed{5}", reward=1.0),
        rollout(3, "\\boxed{4}", _ng_failure_class="timeout", _rlbridge_attempts=3),
        rollout(4, "\\boxed{4}", reward=float("nan")),
    )
    summary = await rescore(source, Judge(evaluator="exact_match"), ordered=True)
    assert summary["verdicts"] == {
        "invalid → valid": 2,
        "valid → higher": 1,
        "valid → lower": 1,
        "valid → same": 1,
    }
    rows = read_lines(tmp_path / "new.jsonl")
    assert [row["reward"] for row in rows] == [1.0, 1.0, 0.0, 1.0, 1.0]
    before = [row["_rlbridge_previous_rewards"][-1] for row in rows]
    assert before[0] == {"reward": 1.0, "reward_components": {"a": 0.5}}
    assert before[3] == {"_ng_failure_class": "timeout", "_rlbridge_attempts": 3}
    assert "_ng_failure_class" not in rows[3]
    assert rows[0]["response"] == rollout(0, "\\boxed{4}")["response"]
    again = await rescore(source, Judge(evaluator="exact_match"))
    assert again["done_before"] == 5
    assert again["verdicts"] == {}


async def test_rows_of_every_form_are_judged_and_those_without_a_rollout_say_so(
    tmp_path: Path,
) -> None:
    bare = {key: value for key, value in rollout(0, "4").items() if not key.startswith("_ng_")}
    source = write(
        tmp_path / "old.jsonl",
        {**bare, "reward": 0.0},
        {**make_row("a", expected_answer="4"), "output": "4", "reward": 0.0},
        make_row("no rollout", expected_answer="4"),
    )
    summary = await rescore(source, Judge(evaluator="exact_match"))
    assert summary["done"] == 2
    assert summary["failed"] == {"bad_row": 1}
    failure = read_lines(failures_path(tmp_path / "new.jsonl"))[0]
    assert failure["_ng_task_index"] == 2
    assert "no rollout here" in failure["_rlbridge_failure_detail"]


async def test_a_gym_judges_again_and_its_failures_are_no_zeros(tmp_path: Path) -> None:
    source = write(tmp_path / "old.jsonl", *(rollout(n, "4", reward=0.0) for n in range(6)))
    behaviour = Behaviour(rewards=0.75, faults=Faults(script=[FaultKind.STATUS_422]))
    async with GymServer(behaviour) as server:
        summary = await rescore(source, Judge(gym=server.url))
        asked = [body for route, body in behaviour.requests if route == "/verify"]
        assert not any("reward" in body or "_ng_failure_class" in body for body in asked)
        assert summary["failed"] == {"bad_row": 1}
        assert summary["verdicts"] == {"valid → higher": 5, "valid → invalid": 1}
        last = await rescore(source, Judge(gym=server.url), retry_failed=True)
    assert last["done"] == 6
    assert "reward" not in json.dumps([r for r in read_lines(source) if r["reward"]])


class Stateful(Behaviour):
    """nemo-gym 0.5.0's word for an environment whose verdicts need their session."""

    def respond(self, method: str, route: str, body: bytes, cookie: str = "") -> Answer:
        if route == "/reverify_mode":
            return Answer(200, b'"unsupported"', {"content-type": "application/json"})
        return super().respond(method, route, body, cookie)


def counting() -> Behaviour:
    """Its verdict depends on what was done in the session."""
    counts: dict[str, int] = {}

    def add(session: str, body: dict[str, Any]) -> dict[str, Any]:
        counts[session] = counts.get(session, 0) + body["n"]
        return {"count": counts[session]}

    return Stateful(tools={"add": add})


def with_tools(number: int, told: str) -> dict[str, Any]:
    output = [
        make_tool_call("add", '{"n": 2}', "c1"),
        {"type": "function_call_output", "call_id": "c1", "output": '{"count": 2}'},
        make_tool_call("add", '{"n": 3}', "c2"),
        {"type": "function_call_output", "call_id": "c2", "output": told},
        make_message("done"),
    ]
    return {**rollout(number, ""), "response": {"output": output}, "reward": 0.0}


async def test_an_environment_whose_verdict_needs_its_session_is_refused_or_replayed(
    tmp_path: Path,
) -> None:
    source = write(
        tmp_path / "old.jsonl", with_tools(0, '{"count":5}'), with_tools(1, '{"count": 6}')
    )
    behaviour = counting()
    async with GymServer(behaviour) as server:
        with pytest.raises(ConfigError, match="--replay"):
            await rescore(source, Judge(gym=server.url))
        summary = await rescore(source, Judge(gym=server.url, replay=True))
        calls = [body["n"] for route, body in behaviour.requests if route == "/add"]
    assert sorted(calls) == [2, 2, 3, 3]
    assert summary["done"] == 1
    assert summary["failed"] == {"bad_row": 1}
    failure = read_lines(failures_path(tmp_path / "new.jsonl"))[0]
    assert "answers otherwise" in failure["_rlbridge_failure_detail"]


async def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "old.jsonl", rollout(0, "4"), rollout(0, "5"))
    with pytest.raises(ConfigError, match=r"old.jsonl:2: a second row of task 0, rollout 0"):
        await rescore(source, Judge(evaluator="exact_match"))
    onto_itself = RescoreRun(Judge(evaluator="math"), QUICK, source, source, Console(quiet=True))
    with pytest.raises(ConfigError, match="another file"):
        await onto_itself.execute()
    with pytest.raises(ConfigError, match="who judges"):
        Judge()
    with pytest.raises(ConfigError, match="--replay"):
        Judge(evaluator="math", replay=True)
