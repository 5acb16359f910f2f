"""The real `grpo_train`, through our driver, with rewards from Gym servers over HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlbridge.launch.run import start_gym
from rlbridge.run_config import RunConfig
from rlbridge.testing import make_row
from tests.nemo_rl.conftest import ROOT

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("cluster")]

STEPS = 3
# What a GPU's base config asks for and this test's loop of 3 steps has no use for.
SMALL = {
    "logger.monitor_gpus": False,
    "policy.max_total_sequence_length": 96,
    "policy.make_sequence_length_divisible_by": 1,
}


def config_of(
    folder: Path, policy: Path, rows: list[dict[str, Any]], url: str, **sections: Any
) -> dict[str, Any]:
    """A run config as plain data; its rows are written."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "policy": {"path": str(policy)},
        "gym": {"url": url, "max_attempts": 2, "backoff_initial_s": 0.05},
        "data": {"train": str(folder / "rows.jsonl"), "max_prompt_tokens": 64},
        "rollout": {"prompts_per_step": 4, "samples_per_prompt": 4, "max_response_tokens": 4},
        "trainer": {"steps": STEPS, "output_dir": str(folder / "run")},
        "nemo_rl": SMALL,
    } | sections


def train(
    folder: Path,
    policy: Path,
    rows: list[dict[str, Any]],
    url: str,
    driver: str = "driver_on_cpu",
    **sections: Any,
) -> subprocess.CompletedProcess[str]:
    """Compile a run and let the driver train it."""
    from rlbridge_nemo_rl.backend import NemoRLBackend

    config = RunConfig.parse(config_of(folder, policy, rows, url, **sections))
    native = NemoRLBackend().compile(config, folder / "run")
    (folder / "run").mkdir(exist_ok=True)
    path = folder / "run" / "native.yaml"
    path.write_text(yaml.safe_dump(dict(native.config)))
    return drive(folder, [f"tests.nemo_rl.{driver}", "--config", str(path)], native.env)


def drive(
    folder: Path, module: list[str], env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a module to its end; what it prints grows in `train.log`."""
    log = folder / "train.log"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", *module],
            env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
            cwd=folder,  # as with an installed rlbridge: nothing of ours lies about
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
    return subprocess.CompletedProcess(done.args, done.returncode, log.read_text())


def steps_of(folder: Path) -> list[Any]:
    from rlbridge import jsonl
    from rlbridge_nemo_rl.backend import METRICS, read_metrics

    lines = jsonl.Follower(folder / "run" / METRICS).poll()
    return [step for step in map(read_metrics, lines) if step is not None]


def test_grpo_trains_three_steps_on_rewards_of_the_embedded_gym(
    tmp_path: Path, policy_folder: Path
) -> None:
    import psutil

    from rlbridge.launch import processes

    rows = [make_row(f"1 + {n % 4 + 1} =", expected_answer=str(n % 4 + 2)) for n in range(8)]
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    url = start_gym("arithmetic", tmp_path)
    try:
        done = train(tmp_path, policy_folder, rows, url)
    finally:
        new = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
        processes.end([c for c in new if "rlbridge" in " ".join(c.cmdline())])
    assert done.returncode == 0, done.stdout[-5000:]
    trained = json.loads((tmp_path / "run" / "trained.json").read_text())
    assert trained["moved"] > 0
    assert len(trained["steps"]) == STEPS
    steps = steps_of(tmp_path)
    assert [step.step for step in steps] == [1, 2, 3]
    assert all(step.native["train/gym/valid"] == 16 for step in steps)
    ledger = [
        json.loads(line)
        for path in (tmp_path / "run" / "rewards").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(ledger) == STEPS * 16
    assert [sum(line["step"] == n for line in ledger) for n in (1, 2, 3)] == [16] * 3


def test_missing_rewards_leave_loss_baseline_and_deviation(
    tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    import torch

    scores = iter(range(10_000))

    def reward(_: dict[str, Any]) -> Any:
        number = next(scores)
        return {"reward": None} if number % 4 == 1 else float(number % 3)

    server = gym(rewards=reward)
    rows = [make_row(f"question {n}") for n in range(16)]
    done = train(
        tmp_path, policy_folder, rows, server.url,
        gym={"url": server.url, "max_attempts": 1, "deterministic": False},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    trained = json.loads((tmp_path / "run" / "trained.json").read_text())
    for step in trained["steps"]:
        mask = torch.tensor(step["sample_mask"])
        advantages = torch.tensor([row[0] for row in step["advantages"]])
        assert int((mask == 0).sum()) == 4
        assert torch.equal(advantages[mask == 0], torch.zeros(4))
        for group, kept in zip(advantages.view(4, 4), mask.view(4, 4).bool(), strict=True):
            left = group[kept]
            # As if the others had never been sampled: mean 0, and deviation 1 where there is any.
            assert float(left.mean()) == pytest.approx(0, abs=1e-5)
            assert float(left.std()) == pytest.approx(1, abs=1e-3) or not left.any()


def test_a_run_without_rewards_stops_and_says_why(
    tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    server = gym(rewards={"reward": None})
    rows = [make_row(f"question {n}") for n in range(16)]
    done = train(
        tmp_path, policy_folder, rows, server.url,
        trainer={"steps": 9, "output_dir": str(tmp_path / "run"), "invalid_window_steps": 1},
    )  # fmt: skip
    assert done.returncode == 3
    assert "16 of the last 16 rewards are invalid" in done.stdout
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "TooFewRewardsError" in events


def test_prompts_that_are_too_long_are_refused_before_training(
    tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    rows = [make_row("short"), make_row("long " * 60)]
    done = train(tmp_path, policy_folder, rows, gym().url)
    assert done.returncode == 2
    assert "1 of 2 prompts are longer than data.max_prompt_tokens" in done.stdout
