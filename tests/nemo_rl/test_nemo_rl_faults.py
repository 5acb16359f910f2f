"""What hangs or dies under NeMo-RL's real GRPO loops: a run ends, says why and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlbridge.testing import FaultKind, Faults, make_row
from tests.nemo_rl.conftest import ROOT
from tests.nemo_rl.test_nemo_rl_async import (
    ACTORS,
    ASYNC,
    DRIVER,
    alive,
    killing,
    ledger_of,
)
from tests.nemo_rl.test_nemo_rl_training import SMALL, config_of, steps_of, train

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("cluster")]

# The same engine in the loop that isn't async: NeMo-RL's async rollouts, colocated.
SYNC = SMALL | {"policy.generation.vllm_cfg.async_engine": True}
PATIENT = {"verify_timeout_s": 3000.0, "total_timeout_s": 9000.0, "queue_timeout_s": 9000.0}


def run_until_stalled(
    folder: Path, policy: Path, rows: list[dict[str, Any]], url: str, native: dict[str, Any]
) -> None:
    timeout_s = 15
    done = train(
        folder, policy, rows, url, driver=DRIVER, nemo_rl=native,
        gym={"url": url, **PATIENT},
        data={"train": str(folder / "rows.jsonl"), "max_prompt_tokens": 64, "shuffle": False},
        trainer={"steps": 3, "output_dir": str(folder / "run"), "stall_timeout_s": timeout_s},
    )  # fmt: skip
    assert done.returncode == 3, done.stdout[-5000:]
    expected = f"StalledError: no reward was recorded for trainer.stall_timeout_s={timeout_s} "
    assert expected in done.stdout
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").open()]
    stopped = [event["reason"] for event in events if event["event"] == "stopped"]
    assert len(stopped) == 1
    assert "StalledError" in stopped[0]
    assert not alive(*ACTORS)


def test_a_gym_that_hangs_ends_the_run(
    tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    server = gym(faults=Faults(rate=1.0, kinds=[FaultKind.SLOW]))
    rows = [make_row(f"question {n}") for n in range(8)]
    run_until_stalled(tmp_path, policy_folder, rows, server.url, SYNC)
    assert server.behaviour.verifies


@pytest.mark.parametrize("native", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_generation_that_never_returns_ends_the_run(
    native: dict[str, Any], tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.sampler_policy import HANGS

    server = gym()
    # In the second batch: async GRPO trains on the first and waits where it wants to refit.
    rows = [make_row(f"question {n} {HANGS if n == 7 else ''}") for n in range(8)]
    run_until_stalled(tmp_path, policy_folder, rows, server.url, native)
    assert server.behaviour.verifies


def test_an_environment_killed_in_the_middle_of_a_step_is_survived_and_judges_nothing_twice(
    tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    # One at a time, and not fast: a step takes seconds, and some of its rewards are there.
    def reward(_: dict[str, Any]) -> float:
        time.sleep(0.1)
        return 1.0

    server = gym(rewards=reward)
    rows = [make_row(f"question {n}") for n in range(16)]
    with killing("GymEnvironment", lambda: len(ledger_of(tmp_path)) >= 20) as killed:
        done = train(
            tmp_path, policy_folder, rows, server.url,
            gym={"url": server.url, "max_concurrency": 2, "deterministic": False},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert killed
    steps = steps_of(tmp_path)
    assert [step.step for step in steps] == [1, 2, 3]
    assert [step.native["train/gym/valid"] for step in steps] == [16] * 3
    ledger = ledger_of(tmp_path)
    assert [sum(line["step"] == n for line in ledger) for n in (1, 2, 3)] == [16] * 3
    assert len({line["sample_id"] for line in ledger}) == 48
    assert len({(line["step"], line["row"], line["sample"]) for line in ledger}) == 48


def test_ctrl_c_ends_rlbridge_run_and_leaves_nothing(
    tmp_path: Path, tokenizer: Any, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import LearningPolicy

    LearningPolicy(tokenizer).model.save_pretrained(policy_folder)
    server = gym()
    config = config_of(
        tmp_path, policy_folder, [make_row(f"question {n}") for n in range(8)], server.url,
        trainer={"steps": 500, "output_dir": str(tmp_path / "run")}, nemo_rl=ASYNC,
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    argv = ["run", "--framework", "nemo_rl", "--config", str(tmp_path / "run.yaml")]
    log = tmp_path / "screen.log"
    with log.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "tests.nemo_rl.run_on_cpu", *argv],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 200
    while not ledger_of(tmp_path) and run.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130, log.read_text()
    assert "stopped on request" in log.read_text()
    assert not alive(*ACTORS)
