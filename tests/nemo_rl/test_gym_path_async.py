"""The real `async_grpo_train`, its collector and its buffer, where Gym's agents roll out."""

import asyncio
import contextlib
import json
import os
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from benchmarks.lessons import RIGHT, WRONG
from rlbridge.errors import PluginError
from rlbridge.gateway.captures import captured_rollouts
from rlbridge.testing import make_row
from tests.nemo_rl.agents import AgentServer
from tests.nemo_rl.conftest import Threaded
from tests.nemo_rl.test_gym_path_training import (
    PLAYED,
    ROLLOUT,
    byte_policy,
    trained_of,
)
from tests.nemo_rl.test_nemo_rl_async import ASYNC, alive, killing, ledger_of
from tests.nemo_rl.test_nemo_rl_training import steps_of, train

__all__ = ["byte_policy"]
pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("cluster")]

STEPS = 4
ACTORS = ("AsyncTrajectoryCollector", "ReplayBuffer", "_RunningAgents")
AGE = 2
NATIVE = ASYNC | {
    "grpo.async_grpo.in_flight_weight_updates": True,
    "grpo.async_grpo.max_trajectory_age_steps": AGE,
}


@pytest.fixture(autouse=True, scope="module")
def launchable() -> None:
    from rlbridge_nemo_rl.gym_flags import check_installed

    try:
        check_installed()
    except PluginError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that the tests here go on with."""
    return tmp_path_factory.mktemp("by_agents")


@pytest.fixture(scope="module")
def port() -> int:
    """One that nobody gets who asks for any: minutes pass until the last gateway takes it."""
    for number in range(21_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", number))
            return number
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def agent(port: int) -> Iterator[str]:
    """URL of one whose second `/run` fails, whose sixth is masked, and whose third sixteen, begun
    with the first weights as those before, ask a second time when there are newer ones."""

    def habit(number: int) -> str:
        known = {1: "fails", 5: "masked"}
        return known.get(number, "twice" if 2 * PLAYED <= number < 3 * PLAYED else "plays")

    server = AgentServer(f"http://127.0.0.1:{port}", habit, lambda: newer_weights(port))
    running = Threaded(server)
    yield running.url
    running.close()


@pytest.fixture(scope="module")
def first(folder: Path, byte_policy: Path, port: int, agent: str) -> SimpleNamespace:
    """What four steps left behind, before anybody went on from there."""
    done = play(folder, byte_policy, agent, port, steps=STEPS, validate_every=2)
    assert done.returncode == 0, done.stdout[-6000:]
    return SimpleNamespace(
        trained=trained_of(folder),
        sampled=json.loads((folder / "run" / "sampled.json").read_text()),
        captured=list(captured_rollouts(folder / "run" / "gym" / f"gateway-{port}" / "calls")),
        ledger=ledger_of(folder),
        steps=steps_of(folder),
        left=alive(*ACTORS),
    )


async def newer_weights(port: int) -> None:
    """Wait until the gateway says that the engine has weights of a step that was trained."""
    async with httpx.AsyncClient(trust_env=False) as http:
        while True:
            status = (await http.get(f"http://127.0.0.1:{port}/status")).json()
            if all(replica["version"] for replica in status["replicas"]):
                return
            await asyncio.sleep(0.05)


def play(folder: Path, policy: Path, agent: str, port: int, **trainer: Any) -> Any:
    rows = [make_row(RIGHT), make_row(WRONG)]
    (folder / "val.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return train(
        folder, policy, rows, "", "async_gym_driver_on_cpu",
        gym={}, agent={"loop": "run", "servers": [{"url": agent, "gateway_port": port}]},
        rollout=ROLLOUT, nemo_rl=NATIVE,
        data={
            "train": str(folder / "rows.jsonl"), "max_prompt_tokens": 64,
            "validation": str(folder / "val.jsonl"),
        },
        trainer={"output_dir": str(folder / "run"), "save_every": STEPS, **trainer},
    )  # fmt: skip


def version_of(one: dict[str, Any]) -> int:
    """NeMo-RL's version of the weights that gave an answer: two refits come before any step."""
    assert one["refits"] >= 1, "an answer of dummy weights"
    return max(0, int(one["refits"]) - 2)


def test_async_grpo_trains_on_what_agents_sampled_by_whichever_weights(
    first: SimpleNamespace,
) -> None:
    trained = first.trained
    assert trained["moved"] > 0
    assert len(trained["steps"]) == STEPS
    untrained = Answers(first.sampled)
    versions = [trained_versions(step, untrained) for step in trained["steps"]]
    assert sum(map(len, versions)) == STEPS * PLAYED - 2
    assert {tuple(of_row) for of_row in versions[0]} == {(0,)}
    assert [0, 1] in versions[2] or [0, 2] in versions[2]  # the weights changed under it
    for number, of_rows in enumerate(versions):
        for of_row in of_rows:
            assert len(of_row) == (2 if number == 2 else 1)
            assert of_row[-1] >= of_row[0] >= number - AGE
            assert of_row[-1] <= number


def test_a_rollout_without_a_reward_is_out_of_loss_and_baseline(first: SimpleNamespace) -> None:
    masks = [torch.tensor(step["sample_mask"]).bool() for step in first.trained["steps"]]
    assert sum(int((~kept).sum()) for kept in masks) == 2
    for step, mask in zip(first.trained["steps"], masks, strict=True):
        advantages = torch.tensor([row[-1] for row in step["advantages"]]).view(2, 8)
        for group, kept in zip(advantages, mask.view(2, 8), strict=True):
            # As if the others had never been played: the mean of those that were is 0.
            assert float(group[kept].mean()) == pytest.approx(0, abs=1e-5)
            assert not group[~kept].any()


def test_a_captured_call_says_which_weights_answered(first: SimpleNamespace) -> None:
    unlabelled, labels = Answers(first.sampled), set()
    for rollout in first.captured:
        for turn in rollout.turns:
            (label,) = {span.policy_version for span in turn.generation}
            prompt, new = turn.prompt.token_ids.tolist(), turn.sampled_ids.tolist()
            logprobs = np.concatenate([span.logprobs for span in turn.generation])
            assert label in (None, unlabelled.take(prompt, new, logprobs.tolist()))
            labels.add(label)
    assert labels - {None} >= {0}
    assert len(labels - {None}) > 1


def test_the_record_and_the_figures_are_of_the_step_they_name(
    folder: Path, first: SimpleNamespace
) -> None:
    assert {line["step"] for line in first.ledger} <= set(range(1, STEPS + 2))
    # The step that the trainer was at when they began; the second half was trained in the next.
    assert sum(line["step"] == 1 for line in first.ledger) >= 2 * PLAYED
    (lost,) = [line for line in first.ledger if not line["valid"]]
    assert lost["failure"] == "server_error"
    assert len([line for line in first.ledger if line["split"] == "validation"]) == 2
    figures = [step.native for step in first.steps]
    assert [step.step for step in first.steps] == [1, 2, 3, 4]
    for name, count in (("valid", 63), ("invalid", 1), ("masked_by_environment", 1)):
        assert sum(native[f"train/gym/{name}"] for native in figures) == count
    assert [native.get("validation/gym/valid") for native in figures] == [None, 1, None, 1]
    for number, native in enumerate(figures, 1):
        assert native["train/avg_trajectory_age"] <= AGE
        path = next((folder / "run").rglob(f"train_data_step{number}.jsonl"))
        logged = [json.loads(line) for line in path.read_text().splitlines()]
        rewards = [row["rewards"][0] for row in logged if row["sample_loss_mask"][0]]
        for name in ("total_reward", "gym_agent/reward"):
            mean = native[f"train/{name}/mean"]
            assert mean == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)


def test_a_resumed_run_counts_weights_on_and_ends_when_its_gateway_dies(
    folder: Path, byte_policy: Path, port: int, agent: str, first: SimpleNamespace
) -> None:
    assert not first.left
    # With a whole batch in it v0.7.0 may wait for ever, see test_nemo_rl_async.
    for path in (folder / "run" / "checkpoints").rglob("replay_buffer.pt"):
        path.unlink()

    def one_more_step() -> bool:
        return any(step.step == STEPS + 1 for step in steps_of(folder))

    with killing("gateway serve", one_more_step) as killed:
        done = play(folder, byte_policy, agent, port, steps=99, validate_every=99)
    assert killed
    assert done.returncode == 3, done.stdout[-5000:]
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("RunError")]
    assert said.startswith(f"RunError: the gateway at http://127.0.0.1:{port} ended; see ")
    steps = [step.step for step in steps_of(folder)]
    assert steps == list(range(1, len(steps) + 1))
    calls = folder / "run" / "gym" / f"gateway-{port}" / "calls"
    earlier = {rollout.rollout_id for rollout in first.captured}
    labels = {
        span.policy_version
        for rollout in captured_rollouts(calls)
        if rollout.rollout_id not in earlier
        for turn in rollout.turns
        for span in turn.generation
    }
    assert min(labels - {None}) == STEPS  # the weights that the first run ended with
    assert not alive(*ACTORS)


class Answers:
    """What the engine sampled, each answer once; the same tokens may come by several weights."""

    def __init__(self, sampled: list[dict[str, Any]]) -> None:
        self._left: defaultdict[tuple[int, ...], list[dict[str, Any]]] = defaultdict(list)
        for one in sampled:
            self._left[*one["prompt"], -1, *one["token_ids"]].append(one)

    def take(self, prompt: list[int], token_ids: list[int], logprobs: list[float]) -> int:
        """The version of the weights that gave this answer, with these logprobs and no others."""
        given = torch.tensor(logprobs)
        alike = self._left[*prompt, -1, *token_ids]
        for one in alike:
            if torch.allclose(given, torch.tensor(one["logprobs"]), atol=1e-6):
                alike.remove(one)
                return version_of(one)
        raise AssertionError("nobody sampled this answer with these logprobs")


def trained_versions(step: dict[str, Any], answers: Answers) -> list[list[int]]:
    """Of each row that counts, the versions of its answers, each trained as it was sampled."""
    found = []
    for row, length in enumerate(step["input_lengths"]):
        if not step["sample_mask"][row]:
            continue
        ids, mask = step["input_ids"][row][:length], step["token_mask"][row][:length]
        versions = []
        at = 0
        while at < length:
            if not mask[at]:
                at += 1
                continue
            stop = next((n for n in range(at, length) if not mask[n]), length)
            logprobs = step["generation_logprobs"][row][at:stop]
            versions.append(answers.take(ids[:at], ids[at:stop], logprobs))
            at = stop
        found.append(versions)
    return found
