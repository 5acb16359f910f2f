"""Real verl, real vLLM and real NeMo Gym environments with tools and state."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

from benchmarks.engine import free_port
from rlbridge.testing.real_servers import (
    running_nemo_gym,
    running_simple_agent,
    running_vllm_model,
    why_unavailable,
)
from tests.json_lines import read_lines, write_lines
from tests.verl.conftest import TrainingRun

pytestmark = [
    pytest.mark.verl,
    pytest.mark.nemo_gym,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable()),
]
TOOLS = ["agent.max_turns=4", "rollout.max_response_tokens=128"]


def test_two_environments_with_tools_train_in_one_run_and_state_survives_the_turns(
    training: Callable[..., TrainingRun], counter: Path, tmp_path: Path
) -> None:
    rows = read_lines(counter / "data" / "counter.jsonl")
    write_lines(tmp_path / "rows", rows)
    weather = json.dumps({"path": str(counter / "data" / "weather.jsonl"), "weight": 0.4})
    with (
        running_nemo_gym("example_session_state_mgmt") as state,
        running_nemo_gym("example_single_tool_call") as single,
    ):
        run = training(
            "agent.loop=tools",
            *TOOLS,
            f"gym.url={state}",
            f"gym.servers={{example_single_tool_call: '{single}'}}",
            f"data.mix=[{weather}]",
            "trainer.steps=4",
            policy=counter,
        )
        assert run.wait() == 0, run.screen

    summary = run.summary()
    assert summary["steps"] == 4
    assert summary["rollout_probs_diff_max"] < 1e-3
    assert {outcome["valid"] for outcome in run.rewards()} == {True}
    steps = [step for step in run.native() if "training/global_step" in step]
    by_environment = {
        name: sum(step.get(f"gym/environment/{name}/rollouts", 0.0) for step in steps)
        for name in ("example_session_state_mgmt", "example_single_tool_call")
    }
    assert sum(by_environment.values()) == 4 * 16
    assert min(by_environment.values()) > 0
    # The weather server rewards every answer; the counter's reward is 1 only if every call of a
    # rollout reached the session that was seeded and is verified.
    rewarded = {
        step["gym/environment/example_session_state_mgmt/reward/mean"]
        for step in steps
        if "gym/environment/example_session_state_mgmt/reward/mean" in step
    }
    assert max(rewarded) > 0
    assert {
        step["gym/environment/example_single_tool_call/reward/mean"]
        for step in steps
        if "gym/environment/example_single_tool_call/reward/mean" in step
    } == {1.0}
    assert sum(step["gym/tool_calls/mean"] for step in steps) > 2
    assert max(step["num_turns/max"] for step in steps) >= 4


def test_gyms_own_agent_trains_through_run_and_the_run_stops_when_the_engine_dies(
    training: Callable[..., TrainingRun], counter: Path, tmp_path: Path
) -> None:
    rows = read_lines(counter / "data" / "counter.jsonl")
    write_lines(tmp_path / "rows", rows)
    port = free_port()
    with (
        running_nemo_gym("example_session_state_mgmt") as resources,
        running_vllm_model(f"http://127.0.0.1:{port}/v1", "policy") as (model, _),
        running_simple_agent(resources, model) as agent,
    ):
        run = training(
            "agent.loop=run",
            f"agent.servers=[{{url: '{agent}', gateway_port: {port}}}]",
            "rollout.max_response_tokens=128",
            "trainer.steps=500",
            policy=counter,
        )
        run.wait_for(lambda: run.steps() >= 3)
        assert run.listening_beyond_loopback() == []
        engine = run.component("EngineCore")
        assert engine is not None
        engine.kill()
        assert run.wait() == 1
    assert "RunError" in run.screen

    summary = run.summary()
    assert summary["steps"] >= 3
    assert summary["rollout_probs_diff_max"] < 1e-3
    outcomes = [outcome for outcome in run.rewards() if outcome["step"] <= 3]
    assert len(outcomes) == 3 * 16
    assert {outcome["valid"] for outcome in outcomes} == {True}
    # Rollouts that the engine left behind have no reward, or one that Gym computed.
    assert {outcome.get("reward", 0.0) for outcome in run.rewards()} <= {0.0, 1.0}
    assert 1.0 in {outcome["reward"] for outcome in outcomes}
    steps = [step for step in run.native() if "training/global_step" in step]
    assert max(step["gym/turns/mean"] for step in steps) > 1.5


def test_verls_async_trainer_trains_on_rollouts_begun_with_older_weights(
    training: Callable[..., TrainingRun], counter: Path, tmp_path: Path
) -> None:
    rows = read_lines(counter / "data" / "counter.jsonl")
    write_lines(tmp_path / "rows", rows)
    with running_nemo_gym("example_session_state_mgmt") as resources:
        run = training(
            "agent.loop=tools",
            *TOOLS,
            f"gym.url={resources}",
            "verl.trainer.v1.trainer_mode=colocate_async",
            "trainer.steps=6",
            policy=counter,
        )
        assert run.wait() == 0, run.screen

    assert {outcome["valid"] for outcome in run.rewards()} == {True}
    steps = [step for step in run.native() if "training/global_step" in step]
    assert len(steps) == 6
    assert {step["gym/valid"] for step in steps} == {16.0}
    worst = [step["training/off_policy/trajectory_staleness_worst/max"] for step in steps]
    assert max(worst) > 0  # some rollouts began with older weights
    for step, staleness in zip(steps, worst, strict=True):
        if staleness == 0:  # and those that did not were sampled as the trainer sees them
            assert step["training/rollout_probs_diff_max"] < 1e-3
    assert steps[0]["training/rollout_probs_diff_max"] < 1e-3
