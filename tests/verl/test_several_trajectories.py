"""Real verl and a Gym agent whose rollouts are several trajectories."""

import asyncio
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

from benchmarks.engine import free_port
from tests.verl.compacting import CompactingAgent
from tests.verl.conftest import GROUP, TrainingRun

pytestmark = pytest.mark.verl
PLANS = ((3, 1.0), (2, 0.0), (1, 0.0), (1, 0.0))  # trajectories and reward of a group's rollouts


async def test_several_trajectories_a_rollout_train_and_their_rollout_counts_once(
    training: Callable[..., TrainingRun], tiny: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny / "data" / "train.jsonl", tmp_path / "rows")
    port = free_port()
    async with CompactingAgent(port, PLANS) as agent:
        run = training(
            "agent.loop=run",
            f"agent.servers=[{{url: '{agent.url}', gateway_port: {port}}}]",
            "data.max_prompt_tokens=128",
            "trainer.steps=3",
        )
        assert await asyncio.to_thread(run.wait) == 0, run.screen

    assert run.summary()["rollout_probs_diff_max"] < 1e-3
    rewards = defaultdict(list)
    for outcome in run.rewards():
        rewards[outcome["uid"]].append(outcome["reward"])
    assert len(rewards) == 3 * 4
    steps = [step for step in run.native() if "training/global_step" in step]
    assert len(steps) == 3
    mean = 1 / GROUP
    deviation = (((1 - mean) ** 2 + (GROUP - 1) * mean**2) / (GROUP - 1)) ** 0.5
    for step in steps:
        assert step["gym/trajectories_per_rollout"] == sum(calls for calls, _ in PLANS) / GROUP
        # Counted once a trajectory the group's mean would be 3/7, not 1/4.
        assert step["critic/advantages/max"] == pytest.approx((1 - mean) / deviation, abs=1e-4)
        assert step["critic/advantages/min"] == pytest.approx(-mean / deviation, abs=1e-4)
        assert step["gym/environment/arithmetic/reward/mean"] == mean
        assert step["actor/grad_norm"] > 0
