"""Any evaluator as a Gym server: the client, `gym check` and NeMo Gym understand its verdicts."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward, ValidReward
from rlbridge.evaluators.evaluator import EvaluatorSpec
from rlbridge.gym import GymClient
from rlbridge.gym.embedded.serve import open_app
from rlbridge.plugins import Plugins
from rlbridge.testing import make_response, make_row

CLI = [sys.executable, "-m", "rlbridge", "gym"]


class Scripted:
    """Answers what it was made with; keeps the rows it was asked."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.rows: list[Mapping[str, Any]] = []
        self.closed = False

    async def verify(self, row: Mapping[str, Any], response: object) -> Reward:
        self.rows.append(row)
        return self.reward

    async def aclose(self) -> None:
        self.closed = True


@asynccontextmanager
async def served(spec: EvaluatorSpec, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with open_app(spec, options) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gym") as client:
            yield client


def scripted(reward: Reward) -> tuple[EvaluatorSpec, Scripted]:
    evaluator = Scripted(reward)
    return EvaluatorSpec("mine", "scripted", lambda _: evaluator, {}), evaluator


def body(answer: str, **fields: Any) -> dict[str, Any]:
    return {**make_row(**fields), "response": make_response(answer)}


async def test_a_row_s_own_fields_reach_the_evaluator_and_come_back() -> None:
    spec, evaluator = scripted(ValidReward(0.5, {"half": 0.5}, extracted="x"))
    async with served(spec) as client:
        answer = (await client.post("/verify", json=body("x", a=[1], metadata={"k": "v"}))).json()
    assert evaluator.rows[0]["a"] == [1]
    assert "response" not in evaluator.rows[0]
    assert (answer["a"], answer["metadata"]) == ([1], {"k": "v"})
    assert (answer["reward"], answer["reward_components"]) == (0.5, {"half": 0.5})
    assert answer["extracted_answer"] == "x"
    assert evaluator.closed


async def test_a_reward_that_is_none_is_marked_for_everybody_who_may_read_it() -> None:
    spec, _ = scripted(InvalidReward(FailureClass.TIMEOUT, "too slow"))
    async with served(spec) as client:
        reply = await client.post("/verify", json=body("x", instance_config={"k": 1}))
    answer = reply.json()
    assert reply.status_code == 200  # an error would end a whole run of NeMo Gym's
    assert answer["reward"] == 0.0
    assert answer["_ng_failure_class"] == "timeout"  # NeMo Gym and our client
    assert answer["instance_config"] == {"k": 1, "mask_sample": True}  # NeMo-RL
    assert answer["mask_sample"] is True


async def test_an_earlier_verdict_in_a_row_does_not_speak_for_this_one() -> None:
    spec, _ = scripted(ValidReward(1.0))
    earlier = {"_ng_failure_class": "timeout", "mask_sample": True, "reward": 0.0}
    async with served(spec) as client:
        answer = (await client.post("/verify", json=body("x", **earlier))).json()
    assert answer["reward"] == 1.0
    assert "_ng_failure_class" not in answer
    assert "mask_sample" not in answer


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("math", {}, "expected_answer"),
        ("multiple_choice", {"options": [{"A": "x"}], "expected_answer": "B"}, "none of"),
        ("multiple_choice", {"expected_answer": "B"}, "options"),
        ("code", {"verifier_metadata": {"unit_tests": {}}}, "inputs and outputs"),
    ],
)
async def test_a_row_that_does_not_fit_is_a_422(name: str, row: Any, says: str) -> None:
    async with served(Plugins().evaluator_spec(name)) as client:
        reply = await client.post("/verify", json=body("x", **row))
    assert reply.status_code == 422
    assert says in reply.text


def serve(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*CLI, "serve", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_a_served_math_gym_passes_the_check_and_stays_answerable(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = make_row("1/2?", expected_answer="\\frac{1}{2}", question="1/2?")
    rows.write_text(json.dumps({**row, "response": make_response("\\boxed{0.5}")}) + "\n")
    config = tmp_path / "math.yaml"
    config.write_text("cpu_s: 1000\nworkers: 1\n")
    with serve("math", "--config", str(config), "--option", "cpu_s=5") as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            command = [*CLI, "check", url, "--rows", str(rows), "--json"]
            checked = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr
            async with GymClient(url=url, max_attempts=1) as gym:
                pairs = [(row, "\\boxed{9^{9^{9^9}}}"), (row, "\\boxed{\\frac{2}{4}}")]
                costly, right = await gym.verify_batch(pairs)
        finally:
            process.terminate()
            assert process.wait(60) == 0
    assert not costly.valid
    assert costly.failure is FailureClass.BAD_ROW
    assert costly.reported == "bad_row"
    assert "CPU time" in costly.detail
    assert right.valid
    assert right.value == 1.0
    assert right.extracted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["maths"], "did you mean 'math'"),
        (["math", "-o", "cpus=1"], "did you mean 'cpu_s'"),
        (["math", "-o", "cpu_s"], "write KEY=VALUE"),
        (["math", "-o", "cpu_s=[", "-o", "x=1"], "not YAML"),
        (["math", "--config", "no-such-file.yaml"], "no-such-file.yaml"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_what_to_do(arguments: list[str], says: str) -> None:
    command = [*CLI, "serve", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr
