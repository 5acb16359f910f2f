"""NeMo-RL's own actor starts Gym, from Gym's own YAML, and its agents play through our gateway.

Real: NeMo-RL's `NemoGym._spinup` in our actor, Gym's `RunHelper` and `RolloutCollectionHelper`, its
head server, mcqa, simple_agent and vllm_model, our gateway, `grpo_train`. A fake stands for vLLM.
The actor's process is killed before the first rollout (but in the head).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lessons import rows as lessons
from rlbridge.errors import PluginError
from rlbridge.testing.real_servers import why_unavailable
from tests.nemo_rl import gym_python
from tests.nemo_rl.agents import hf_byte_tokenizer
from tests.nemo_rl.test_gym_path_async import NATIVE, Answers, trained_versions
from tests.nemo_rl.test_gym_path_training import (
    PLAYED,
    ROLLOUT,
    assert_trained_as_sampled,
    ledger_of,
    trained_of,
)
from tests.nemo_rl.test_nemo_rl_training import SMALL, steps_of, train

pytestmark = [
    pytest.mark.nemo_rl,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable()),
]
STEPS = 2
CONFIGS = [
    "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml",
    "resources_servers/mcqa/configs/mcqa.yaml",
]


@pytest.fixture(autouse=True)
def launchable() -> None:
    from rlbridge_nemo_rl.gym_flags import check_installed

    try:
        check_installed()
    except PluginError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("native", [SMALL, NATIVE], ids=["sync", "async"])
def test_grpo_trains_on_what_agents_play_in_a_gym_that_nemo_rl_starts_and_ours_restarts(
    native: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venvs, policy = tmp_path / "venvs", tmp_path / "policy"
    hf_byte_tokenizer().save_pretrained(policy)
    python = gym_python.make(venvs)
    if why := gym_python.why_unusable(python):
        pytest.skip(why)
    for name, value in gym_python.QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GYM_ACTOR_PYTHON", str(python))
    logs = tmp_path / "logs"
    gym = {
        "config_paths": CONFIGS,
        "uv_venv_dir": str(venvs),
        "skip_venv_if_present": True,
        "uv_cache_dir": str(tmp_path / "uv"),
        "nemo_gym_log_dir": str(logs),
    }
    rows = [
        {**row, "agent_ref": {"type": "responses_api_agents", "name": "mcqa_simple_agent"}}
        for row in lessons()["mcqa"]
    ]
    done = train(
        tmp_path, policy, rows, "", "started_gym_driver",
        gym={}, agent={"loop": "run"}, rollout=ROLLOUT,
        trainer={"steps": STEPS, "output_dir": str(tmp_path / "run")},
        nemo_rl={**native, "env": {"nemo_gym": gym}},
    )  # fmt: skip
    said = "".join(path.read_text()[-2000:] for path in logs.glob("*.log"))
    assert done.returncode == 0, done.stdout[-4000:] + said
    assert gym_python.processes(venvs) == []  # they ended with the run

    trained = trained_of(tmp_path)
    assert trained["moved"] > 0
    sampled: list[dict[str, Any]] = json.loads((tmp_path / "run" / "sampled.json").read_text())
    if native is NATIVE:
        left = Answers(sampled)
        for step in trained["steps"]:
            assert len(trained_versions(step, left)) == PLAYED
    else:
        assert len(sampled) == STEPS * PLAYED
        for number, step in enumerate(trained["steps"]):
            assert_trained_as_sampled(step, sampled[number * PLAYED : (number + 1) * PLAYED])
    assert [step.native["train/gym/valid"] for step in steps_of(tmp_path)] == [PLAYED] * STEPS
    assert {line["reward"] for line in ledger_of(tmp_path)} == {0.0, 1.0}  # mcqa's own

    listening = json.loads((tmp_path / "run" / "listening.json").read_text())
    assert listening == {"head": ["127.0.0.1"], "servers": ["127.0.0.1"]}
