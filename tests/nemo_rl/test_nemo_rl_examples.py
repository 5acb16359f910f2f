"""examples/nemo_rl as its comments say to run it, with a policy that a CPU can train."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from rlbridge.launch import processes
from rlbridge.launch.preflight import check_gym, check_rows
from rlbridge.launch.run import start_gym
from rlbridge.prompts import MARK, PromptConfig
from rlbridge.run_config import RunConfig, load_run_config
from tests.nemo_rl.conftest import ROOT

pytestmark = pytest.mark.nemo_rl

EXAMPLES = Path("examples") / "nemo_rl"
STEPS = 2
SMALL = {
    "logger.monitor_gpus": False,
    "policy.max_total_sequence_length": 128,
    "policy.make_sequence_length_divisible_by": 1,
}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def example(name: str, folder: Path, policy: Path, url: str) -> RunConfig:
    """An example's config, made small."""
    overrides = [
        f"policy.path={policy}",
        f"gym.url={url}",
        "gym.serve=null",
        "rollout.prompts_per_step=4",
        "rollout.max_response_tokens=12",
        f"trainer.steps={STEPS}",
        "trainer.save_every=null",
        f"trainer.output_dir={folder / 'run'}",
        f"nemo_rl={json.dumps(SMALL)}",
    ]
    return load_run_config(EXAMPLES / f"{name}.yaml", overrides)


def trained(config: RunConfig, answers: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train by NeMo-RL's real loop; what was trained on, and the record of rewards."""
    from rlbridge_nemo_rl.backend import NemoRLBackend

    run_dir = config.trainer.output_dir
    native = NemoRLBackend().compile(config, run_dir)
    run_dir.mkdir()
    path = run_dir / "native.yaml"
    path.write_text(yaml.safe_dump(dict(native.config)))
    own = {"PYTHONPATH": str(ROOT), "ANSWERS": json.dumps(answers)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.nemo_rl.example_driver", "--config", str(path)],
        env={**os.environ, **native.env, **own},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ledger = [
        json.loads(line)
        for file in sorted((run_dir / "rewards").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return json.loads((run_dir / "trained.json").read_text()), ledger


@pytest.fixture
def weather() -> Iterator[str]:
    """The example's server on a free port, as its comment says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(EXAMPLES / "weather_env.py"), str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline
            try:
                httpx.get(url, timeout=5, trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
        server.send_signal(signal.SIGINT)


@pytest.mark.usefixtures("registered")
def test_the_weather_verifier_judges_its_rows_and_trains(
    weather: str, tmp_path: Path, policy_folder: Path
) -> None:
    import ray
    from nemo_rl.environments.utils import create_env

    config = example("weather", tmp_path, policy_folder, weather)
    rows = check_rows(config)
    assert check_gym(config.gym, rows) == []  # what `rlbridge run` asks before it starts
    env = create_env("rlbridge_gym", {"url": weather})
    said = [[{"role": "assistant", "content": "It rains with 0.8"}] for _ in rows]
    rewards = ray.get(env.step.remote(said, [{"row": row} for row in rows])).rewards.tolist()
    assert rewards == pytest.approx([0.96 if row["rained"] else 0.36 for row in rows])
    ray.kill(env)
    known, ledger = trained(config, ["0.2", "0.8"])
    assert known["moved"] > 0
    assert [sum(line["step"] == step for line in ledger) for step in (1, 2)] == [32, 32]
    assert all(line["valid"] and 0 <= line["reward"] <= 1 for line in ledger)
    assert len({line["reward"] for line in ledger}) > 1


@pytest.mark.usefixtures("cluster")
def test_the_math_example_makes_its_prompts_of_raw_fields_and_trains(
    tmp_path: Path, policy_folder: Path
) -> None:
    import psutil

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    url = start_gym("math", tmp_path)
    try:
        config = example("math", tmp_path, policy_folder, url)
        rows = check_rows(config)
        made = PromptConfig.load("generic/math")
        assert {row[MARK] for row in rows} == {made.digest}
        assert check_gym(config.gym, rows) == []
        answers = [f"\\boxed{{{row['expected_answer']}}}" for row in rows[:2]]
        known, ledger = trained(config, answers)
    finally:
        new = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
        processes.end([c for c in new if "rlbridge" in " ".join(c.cmdline())])
    assert known["moved"] > 0
    assert len(ledger) == STEPS * 32
    assert all(line["valid"] for line in ledger)
    assert 1.0 in {line["reward"] for line in ledger}
