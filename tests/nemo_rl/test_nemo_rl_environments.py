"""Several real NeMo Gym environments with tools in one real GRPO run on NeMo-RL."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlbridge.testing.real_servers import running_nemo_gym, why_unavailable
from tests.nemo_rl.conftest import ROOT
from tests.nemo_rl.test_nemo_rl_async import ledger_of
from tests.nemo_rl.test_nemo_rl_training import SMALL, steps_of, train

pytestmark = [
    pytest.mark.nemo_rl,
    pytest.mark.nemo_gym,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable()),
    pytest.mark.usefixtures("cluster"),
]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy that calls tools, and rows for two of NeMo Gym's environments."""
    folder = tmp_path_factory.mktemp("counter")
    command = [sys.executable, "examples/counter_policy.py", "--output", str(folder)]
    small = ["--warm-up-steps", "250", "--largest", "3"]
    subprocess.run([*command, *small], check=True, timeout=600, cwd=ROOT)
    return folder


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / name).read_text().splitlines()]


def test_two_environments_with_tools_train_in_one_run_and_validate_on_valid_rewards(
    counter: Path, tmp_path: Path
) -> None:
    # The weather server rewards every answer; a counter row without its fields has no reward.
    broken = {**rows_of(counter, "counter.jsonl")[0]}
    del broken["expected_count"]
    validation = [*rows_of(counter, "weather.jsonl")[:2], broken]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in validation))
    with (
        running_nemo_gym("example_session_state_mgmt") as state,
        running_nemo_gym("example_single_tool_call") as single,
    ):
        done = train(
            tmp_path, counter / "policy", rows_of(counter, "counter.jsonl"), state,
            driver="tools_driver_on_cpu",
            gym={"url": state, "servers": {"example_single_tool_call": single}},
            agent={"loop": "tools", "max_turns": 4},
            data={
                "train": str(tmp_path / "rows.jsonl"), "max_prompt_tokens": 64,
                "mix": [{"path": str(counter / "data" / "weather.jsonl"), "weight": 0.5}],
                "validation": str(tmp_path / "val.jsonl"),
            },
            rollout={"prompts_per_step": 4, "samples_per_prompt": 4, "max_response_tokens": 40},
            trainer={"steps": 2, "output_dir": str(tmp_path / "run"), "validate_every": 2},
            nemo_rl=SMALL | {"policy.max_total_sequence_length": 256},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    trained = json.loads((tmp_path / "run" / "trained.json").read_text())
    assert trained["moved"] > 0

    steps = steps_of(tmp_path)
    assert [step.native["train/gym/valid"] for step in steps] == [16, 16]
    assert steps[1].native["validation/accuracy"] == 1.0
    assert steps[1].native["train/gym/validation/valid"] == 2
    assert steps[1].native["train/gym/validation/invalid/bad_row"] == 1
    ledger = [line for line in ledger_of(tmp_path) if line["split"] == "train"]
    assert len(ledger) == 32
    assert {line["reward"] for line in ledger} == {0.0, 1.0}

    path = next((tmp_path / "run").rglob("train_data_step1.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        said = row["content"][0][1::2]  # behind the prompt, policy and environment take turns
        assert any("<tool_call>" in text for text in said)
        assert not any("success" in text for text in said)
