"""One run config on both frameworks: each of its keys arrives, or is refused by its name."""

import importlib.util
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.nemo_rl.conftest import ROOT

ROWS = ROOT / "examples" / "nemo_rl" / "math_rows.jsonl"
RUN = {
    "policy": {"path": "/models/p"},
    "gym": {"url": "http://127.0.0.1:9"},
    "data": {"train": str(ROWS), "prompt": "generic/math", "max_prompt_tokens": 200},
    "agent": {"loop": "tools", "max_turns": 5},
    "algorithm": {"learning_rate": 2e-6, "kl_coef": 0.01, "rollout_correction": "token"},
    "rollout": {
        "prompts_per_step": 4,
        "samples_per_prompt": 6,
        "max_response_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
    },
    "trainer": {"steps": 11, "save_every": 4, "max_invalid_share": 0.25},
}
_VERL_ROLLOUT = "actor_rollout_ref.rollout"
_VLLM = "policy.generation"
PLACES: dict[str, dict[str, Any]] = {
    "verl": {
        "actor_rollout_ref.model.path": "/models/p",
        "reward.nemo_gym.url": "http://127.0.0.1:9",
        "data.nemo_gym_prompt": ["generic/math"],
        "data.max_prompt_length": 200,
        f"{_VERL_ROLLOUT}.multi_turn.max_assistant_turns": 5,
        "actor_rollout_ref.actor.optim.lr": 2e-6,
        "actor_rollout_ref.actor.kl_loss_coef": 0.01,
        "algorithm.rollout_correction.rollout_is": "token",
        "data.train_batch_size": 4,
        f"{_VERL_ROLLOUT}.n": 6,
        "data.max_response_length": 50,
        f"{_VERL_ROLLOUT}.temperature": 0.7,
        f"{_VERL_ROLLOUT}.top_p": 0.9,
        "trainer.total_training_steps": 11,
        "trainer.save_freq": 4,
        "trainer.v1.sampler.sampler_kwargs.max_invalid_share": 0.25,
    },
    "nemo_rl": {
        "policy.model_name": "/models/p",
        "env.rlbridge_gym.url": "http://127.0.0.1:9",
        "data.train.prompt": "generic/math",
        "data.max_input_seq_length": 200,
        "grpo.max_rollout_turns": 5,
        "policy.optimizer.kwargs.lr": 2e-6,
        "loss_fn.reference_policy_kl_penalty": 0.01,
        "loss_fn.truncated_importance_sampling_type": "tis",
        "grpo.num_prompts_per_step": 4,
        "grpo.num_generations_per_prompt": 6,
        f"{_VLLM}.max_new_tokens": 50,
        f"{_VLLM}.temperature": 0.7,
        f"{_VLLM}.top_p": 0.9,
        "grpo.max_num_steps": 11,
        "checkpointing.save_period": 4,
        "rlbridge.max_invalid_share": 0.25,
    },
}
REFUSED = {
    "verl": ("algorithm.name=sft", "algorithm.name"),
    "nemo_rl": ("algorithm.entropy_coef=0.1", "algorithm.entropy_coef"),
}
FRAMEWORKS = [
    pytest.param("verl", marks=pytest.mark.verl),
    pytest.param("nemo_rl", marks=pytest.mark.nemo_rl),
]


# The same agents on both: Gym's own, which run already.
SERVERS = [{"url": "http://127.0.0.1:8001", "gateway_port": 8100}]
RUN_LOOP = {name: section for name, section in RUN.items() if name != "gym"} | {
    "agent": {"loop": "run", "servers": SERVERS}
}
RUN_PLACES: dict[str, dict[str, Any]] = {
    "verl": {
        f"{_VERL_ROLLOUT}.agent.default_agent_loop": "nemo_gym_run",
        "reward.nemo_gym.agents": SERVERS,
        "data.max_response_length": 50,
    },
    "nemo_rl": {
        "env.should_use_nemo_gym": True,
        "rlbridge.agents.servers": SERVERS,
        f"{_VLLM}.vllm_cfg.async_engine": True,
        f"{_VLLM}.vllm_cfg.expose_http_server": True,
        f"{_VLLM}.stop_strings": None,
        "grpo.max_val_samples": None,
        f"{_VLLM}.max_new_tokens": 50,
    },
}


def dry_run(
    framework: str, folder: Path, *overrides: str, run: Any = RUN
) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} isn't importable here")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "rlbridge", "run", "--framework", framework]
    return subprocess.run(
        [*command, "--config", str(path), "--dry-run", *overrides],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("run", "places"), [(RUN, PLACES), (RUN_LOOP, RUN_PLACES)], ids=["tools", "run"]
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_key_of_one_config_arrives(
    framework: str, run: Any, places: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    done = dry_run(framework, tmp_path, run=run)
    if "makes no Gym actor" in done.stderr:
        pytest.skip("agent.loop=run is refused with this NeMo-RL (0.6)")
    assert done.returncode == 0, done.stderr
    native = yaml.safe_load(done.stdout.partition("\n# The same by hand")[0])
    wanted = places[framework]
    found = {key: reduce(lambda tree, part: tree[part], key.split("."), native) for key in wanted}
    assert found == wanted


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_one_of_them_cannot_honour_is_an_error_by_name(framework: str, tmp_path: Path) -> None:
    override, named = REFUSED[framework]
    done = dry_run(framework, tmp_path, override)
    assert done.returncode == 1
    assert named in done.stderr
