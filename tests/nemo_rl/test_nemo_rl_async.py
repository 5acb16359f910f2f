"""The real `async_grpo_train`, its collector and its replay buffer, through our driver."""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlbridge.testing import make_row
from tests.nemo_rl.conftest import Section
from tests.nemo_rl.test_environment import batch, create
from tests.nemo_rl.test_nemo_rl_training import SMALL, steps_of, train

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("cluster")]

ACTORS = ("AsyncTrajectoryCollector", "ReplayBuffer", "GymEnvironment", "Sampler")
DRIVER = "async_driver_on_cpu"
ASYNC = SMALL | {
    "grpo.async_grpo.enabled": True,
    "grpo.async_grpo.max_trajectory_age_steps": 1,
    "policy.generation.colocated.enabled": False,
    "policy.generation.colocated.resources.gpus_per_node": 1,
}


def said(body: dict[str, Any]) -> str:
    return str(body["response"]["output"][-1]["content"][0]["text"])


def ledger_of(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "run" / "rewards").glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def alive(*names: str) -> list[str]:
    """Titles of Ray's actors of these classes that stay, below this process.

    Ray ends the actors of a driver that is gone by itself, a while later on a busy machine.
    """
    deadline = time.monotonic() + 30
    while (found := _titles(names)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _titles(names: tuple[str, ...]) -> list[str]:
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            title = " ".join(child.cmdline())
            running = child.status() != psutil.STATUS_ZOMBIE
            found += [title] if running and any(name in title for name in names) else []
    return found


@contextlib.contextmanager
def killing(title: str, due: Callable[[], bool]) -> Iterator[list[int]]:
    """Kills the processes with `title` in their command lines once it is due; gives their IDs."""
    import psutil

    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not due():
            if over.wait(0.05):
                return
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if title in " ".join(child.cmdline()):
                    child.kill()
                    killed.append(child.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_async_grpo_trains_on_whatever_rewards_there_are(
    tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    from rlbridge_nemo_rl import versions
    from tests.nemo_rl.sampler_policy import FAILS

    def reward(body: dict[str, Any]) -> Any:
        return {"reward": None} if "4" in said(body) else float("2" in said(body))

    server = gym(rewards=reward)
    rows = [make_row(f"question {n}") for n in range(7)] + [make_row(f"question 7 {FAILS}")]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    steps = 4  # of 4 prompts: 8 rows are two epochs
    with killing("GymEnvironment", lambda: len(ledger_of(tmp_path)) >= 20) as killed:
        done = train(
            tmp_path, policy_folder, rows, server.url, driver=DRIVER, nemo_rl=ASYNC,
            data={
                "train": str(tmp_path / "rows.jsonl"), "max_prompt_tokens": 64,
                "validation": str(tmp_path / "val.jsonl"),
            },
            trainer={"steps": steps, "output_dir": str(tmp_path / "run"), "validate_every": 2},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert killed
    trained = json.loads((tmp_path / "run" / "trained.json").read_text())
    assert trained["moved"] > 0
    assert [step.step for step in steps_of(tmp_path)] == [1, 2, 3, 4]

    sampler = json.loads((tmp_path / "run" / "sampler.json").read_text())
    assert sampler["refits"] == steps + 2  # one before anybody collects
    # The collector's process imported us from what the driver lent it, and from nowhere else.
    lent = str(tmp_path / "run" / "python" / "rlbridge_nemo_rl" / "__init__.py")
    assert lent in sampler["packages"]

    failed = 0
    for number, step in enumerate(trained["steps"], 1):
        mask = torch.tensor(step["sample_mask"])
        advantages = torch.tensor([row[0] for row in step["advantages"]])
        path = next((tmp_path / "run").rglob(f"train_data_step{number}.jsonl"))
        logged = [json.loads(line) for line in path.read_text().splitlines()]
        for place, row in enumerate(logged):
            messages = row["content"][0]
            failed += len(messages) == 1
            kept = len(messages) > 1 and "4" not in messages[1]
            assert bool(mask[place]) == kept
        assert torch.equal(advantages[mask == 0], torch.zeros(int((mask == 0).sum())))
        for group, kept in zip(advantages.view(4, 4), mask.view(4, 4).bool(), strict=True):
            left = group[kept]
            assert not left.any() or float(left.mean()) == pytest.approx(0, abs=1e-5)
    assert failed  # the engine did fail, and no reward of 0 came of it

    ledger = ledger_of(tmp_path)
    assert max(Counter(line["sample_id"] for line in ledger).values()) == 1
    assert {line["step"] for line in ledger} <= set(range(1, steps + 2))
    validated = [line for line in ledger if line["split"] == "validation"]
    assert len(validated) == 2 * 3
    for step in steps_of(tmp_path):
        assert ("validation/accuracy" in step.native) == (step.step in (2, 4))
        assert step.native["train/avg_trajectory_age"] <= 1
        if versions.hands_over_async_mask():  # 0.6 logs the figure that a missing reward spoils
            assert step.native["train/mean_total_reward"] >= 0
    assert not alive(*ACTORS)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("leave_one_out", "mask_is_handed_over"), [(False, True), (True, True), (False, False)]
)
def test_async_masks_baselines_and_deviations_are_those_of_sync(
    leave_one_out: bool,
    mask_is_handed_over: bool,
    tokenizer: Any,
    tmp_path: Path,
    gym: Callable[..., Any],
) -> None:
    from nemo_rl.algorithms import advantage_estimator, grpo

    from rlbridge_nemo_rl.validity import InvalidShare, ValidAdvantages, settle
    from tests.nemo_rl.policies import scripted

    texts = iter(["good", "bad", "none", "good", "bad", "bad", None, "good", *["none"] * 4])
    scores = {"good": 1.0, "bad": 0.0, "none": {"reward": None}}
    server = gym(rewards=lambda body: scores[said(body)])
    data = batch(tokenizer, tmp_path, [make_row(f"q{n}") for n in range(3)], group=4)
    policy = scripted(tokenizer, lambda *_: next(texts))
    environment = {"gym": create(server.url)}
    # What the collector's process puts into the buffer: NeMo-RL's own function, nothing of ours.
    raw = grpo.run_async_multi_turn_rollout.__wrapped__
    out, _ = raw(policy, data, tokenizer, environment, max_seq_len=400)
    prompts = torch.arange(3).repeat_interleave(4)[:, None].repeat(1, 2)
    token_mask = torch.ones(12, 5)
    config = Section(use_leave_one_out_baseline=leave_one_out, normalize_rewards=True)

    inner = advantage_estimator.GRPOAdvantageEstimator(config, None)

    def advantages(rolled: Any, **more: Any) -> torch.Tensor:
        mask = token_mask * rolled["loss_multiplier"][:, None]
        return ValidAdvantages(inner, InvalidShare()).compute_advantage(
            prompt_ids=prompts, rewards=rolled["total_reward"], mask=mask, repeated_batch=rolled,
            **more,
        )  # fmt: skip

    synchronous = settle(out.select_indices(list(range(12))))
    expected = advantages(synchronous)
    # NeMo-RL 0.6 hands none over; its loss's mask is the batch's own tensor.
    handed_over = {"sample_mask": out["loss_multiplier"]} if mask_is_handed_over else {}
    found = advantages(out, **handed_over)
    assert torch.equal(found, expected)
    assert out["loss_multiplier"].tolist() == [1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    assert torch.equal(out["loss_multiplier"], synchronous["loss_multiplier"])
    assert torch.equal(out["total_reward"], synchronous["total_reward"])


def test_a_resumed_async_run_counts_on_and_stops_when_too_few_rewards_come(
    tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    server = gym(rewards=lambda body: float("2" in said(body)))
    rows = [make_row(f"question {n}") for n in range(8)]

    def run(steps: int) -> Any:
        return train(
            tmp_path, policy_folder, rows, server.url, driver=DRIVER, nemo_rl=ASYNC,
            trainer={
                "steps": steps, "output_dir": str(tmp_path / "run"), "save_every": 1,
                "invalid_window_steps": 1,
            },
        )  # fmt: skip

    first = run(1)
    assert first.returncode == 0, first.stdout[-5000:]
    earlier = len(ledger_of(tmp_path))
    server.behaviour.rewards = {"reward": None}
    # With a whole batch in it, v0.7.0's trainer may outrun a collector that is still starting, and
    # then waits for ever for the next one: a step here takes no time at all.
    for path in (tmp_path / "run" / "checkpoints").rglob("replay_buffer.pt"):
        path.unlink()
    second = run(9)
    # NeMo-RL's loop prints the error and returns as if all were well.
    assert second.returncode == 3, second.stdout[-5000:]
    assert "16 of the last 16 rewards are invalid" in second.stdout
    done = [step.step for step in steps_of(tmp_path)]
    assert done == list(range(1, len(done) + 1))
    assert min(line["step"] for line in ledger_of(tmp_path) if not line["valid"]) == 2
    assert len(ledger_of(tmp_path)) > earlier
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]
    assert [event["event"] for event in events][-3:] == ["ending", "stopped", "ending"]
    assert not alive(*ACTORS)
