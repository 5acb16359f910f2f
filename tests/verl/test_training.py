"""Real verl, real vLLM, real HTTP: what a run does when all is well, and when it isn't."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

from rlbridge.testing.real_servers import running_nemo_gym, why_unavailable
from tests.json_lines import read_lines, write_lines
from tests.verl.conftest import A_STEP, GROUP, GymProcess, TrainingRun

pytestmark = pytest.mark.verl


@pytest.fixture
def sums(tiny: Path) -> list[dict[str, Any]]:
    return read_lines(tiny / "data" / "train.jsonl")[:10]


def test_a_gym_killed_and_restarted_and_a_bad_row_cost_no_run_and_invent_no_reward(
    training: Callable[..., TrainingRun],
    gym: GymProcess,
    tmp_path: Path,
    sums: list[dict[str, Any]],
) -> None:
    steps, bad = 6, 5
    del sums[bad]["expected_answer"]
    write_lines(tmp_path / "rows", sums)
    # Two to validate on, of which one can't be judged either.
    write_lines(tmp_path / "held_out", [sums[0], sums[bad]])
    validation = [f"data.validation={tmp_path / 'held_out'}", "trainer.validate_every=5"]
    patient = ["gym.outage_patience_s=300", "gym.total_timeout_s=600"]  # a slow machine's start
    run = training(f"gym.url={gym.url}", f"trainer.steps={steps}", *validation, *patient)
    run.wait_for(lambda: run.steps() >= 2)
    assert run.listening_beyond_loopback() == []
    gym.kill()
    time.sleep(10)
    gym.start()
    assert run.wait() == 0, run.screen

    everything = run.rewards()
    outcomes = [outcome for outcome in everything if outcome["split"] == "train"]
    held_out = [outcome for outcome in everything if outcome["split"] == "validation"]
    assert {(outcome["row"], outcome["valid"]) for outcome in held_out} == {(0, True), (1, False)}
    valid = [outcome for outcome in outcomes if outcome["valid"]]
    invalid = [outcome for outcome in outcomes if not outcome["valid"]]
    verify = run.summary()["verify"]
    # Every trajectory is accounted for once: by step, prompt and sample.
    assert len({(o["step"], o["uid"], o["sample"]) for o in outcomes}) == steps * A_STEP
    assert len(outcomes) == steps * A_STEP
    assert len(everything) == verify["valid"] + verify["invalid"]
    # The outage cost no reward; the row that can't be judged is masked, and named.
    assert {outcome["row"] for outcome in invalid} == {bad}
    assert {outcome["failure"] for outcome in invalid} == {"bad_row"}
    assert len(invalid) % GROUP == 0
    assert all("reward" not in outcome for outcome in invalid)
    assert {outcome["reward"] for outcome in valid} <= {0.0, 1.0}
    assert f"row {bad}: masked" in run.screen
    assert "expected_answer" in run.screen

    summary = run.summary()
    assert summary["steps"] == steps
    assert summary["rollout_probs_diff_max"] < 1e-3
    assert summary["peak_rss_mb"] < 12_000
    metrics = read_lines(run.output / "metrics.jsonl")
    native = read_lines(run.output / "verl_metrics.jsonl")
    assert sum(line["invalid"] for line in metrics) == len(invalid)
    assert sum(line["data"]["gym/invalid"] for line in native) == len(invalid)
    assert (run.output / "reward.png").stat().st_size > 1000


@pytest.mark.nemo_gym
@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())
def test_the_same_run_trains_on_a_real_nemo_gym_server_and_stops_when_a_worker_dies(
    training: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    rows = [
        {
            "responses_create_params": {
                "input": [{"role": "user", "content": f"What is {i} + 1?"}]
            },
            "options": [{"A": str(i)}, {"B": str(i + 1)}],
            "expected_answer": "B",
            "grading_mode": "strict_single_letter_boxed",
            "agent_ref": {"type": "responses_api_agents", "name": "mcqa_simple_agent"},
        }
        for i in range(8)
    ]
    write_lines(tmp_path / "rows", rows)
    with running_nemo_gym("mcqa") as url:
        run = training("--gym-url", url, "trainer.steps=500")
        run.wait_for(lambda: run.steps() >= 2)
        assert {outcome["valid"] for outcome in run.rewards()} == {True}
        worker = run.component("AgentLoopWorker")
        assert worker is not None
        worker.kill()
        assert run.wait() == 1
    # The trainer may notice before the launcher does; either names the worker.
    assert "RunError" in run.screen
    assert "AgentLoopWorker" in run.screen
    assert run.summary()["steps"] >= 2


def test_a_gym_that_stays_dead_stops_the_run_cleanly_and_resume_goes_on(
    training: Callable[..., TrainingRun],
    gym: GymProcess,
    tmp_path: Path,
    sums: list[dict[str, Any]],
) -> None:
    write_lines(tmp_path / "rows", sums)
    impatient = ["gym.total_timeout_s=6", "gym.outage_patience_s=2", "gym.max_attempts=2"]
    run = training(f"gym.url={gym.url}", "trainer.steps=500", *impatient)
    run.wait_for(lambda: run.steps() >= 2)
    gym.kill()
    assert run.wait() == 1
    done = run.summary()["steps"]
    assert (run.output / "checkpoints" / f"global_step_{done}").is_dir()
    assert f"kept the checkpoint of step {done}" in run.screen
    lost = [outcome for outcome in run.rewards() if not outcome["valid"]]
    assert lost
    assert {outcome["fault"] for outcome in lost} == {"infrastructure"}
    assert all("reward" not in outcome for outcome in lost)

    gym.start()
    more = training(f"gym.url={gym.url}", f"trainer.steps={done + 1}", "--resume")
    assert more.wait() == 0, more.screen
    lines = (more.output / "metrics.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["step"] for line in lines] == [done + 1]


def test_a_launcher_killed_outright_leaves_no_process_behind(
    training: Callable[..., TrainingRun], tmp_path: Path, sums: list[dict[str, Any]]
) -> None:
    write_lines(tmp_path / "rows", sums)
    run = training("gym.serve=arithmetic", "trainer.steps=3")
    run.wait_for(lambda: run.component("WorkerDict"))
    run.process.kill()
    assert run.wait(patience_s=60) == -signal.SIGKILL


def test_ctrl_c_while_loading_ends_everything_with_a_status_of_its_own(
    training: Callable[..., TrainingRun], tmp_path: Path, sums: list[dict[str, Any]]
) -> None:
    write_lines(tmp_path / "rows", sums)
    run = training("gym.serve=arithmetic", "trainer.steps=3")
    run.wait_for(lambda: run.component("WorkerDict"))
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert "stopped on request" in run.screen
