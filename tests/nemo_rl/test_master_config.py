"""Compiled configs and examples against the installed NeMo-RL's own `MasterConfig`."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlbridge.errors import ConfigError, PluginError
from rlbridge.run_config import RunConfig, load_run_config
from rlbridge.testing import make_row
from rlbridge_nemo_rl import origin
from tests.nemo_rl.conftest import ROOT

pytestmark = pytest.mark.nemo_rl

EXAMPLES = sorted((ROOT / "examples" / "nemo_rl").glob("*.yaml"))


def compiled(tmp_path: Path, **sections: Any) -> Any:
    from rlbridge_nemo_rl.backend import NemoRLBackend

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(make_row("q")) + "\n")
    given = {"policy": {"path": "/models/p"}, "data": {"train": str(rows)}} | sections
    return NemoRLBackend().compile(RunConfig.parse(given), tmp_path / "run")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_config_nemo_rl_takes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlbridge_nemo_rl.backend import NemoRLBackend
    from rlbridge_nemo_rl.gym_flags import check_installed

    monkeypatch.chdir(ROOT)
    config = load_run_config(path)
    if config.agent.loop == "run":
        try:
            check_installed()
        except PluginError as error:
            pytest.skip(str(error))
    native = NemoRLBackend().compile(config, tmp_path)
    assert native.config["rlbridge"]["algorithm"] == config.algorithm.name
    assert native.config["policy"]["model_name"].endswith("models/Qwen2.5-1.5B-Instruct")


def test_native_keys_win_and_interpolations_follow(tmp_path: Path) -> None:
    native = compiled(
        tmp_path,
        nemo_rl={"policy.max_total_sequence_length": 4096, "grpo": {"seed": 9}},
    ).config
    assert native["policy"]["generation"]["vllm_cfg"]["max_model_len"] == 4096
    assert native["grpo"]["seed"] == 9
    assert list(native["env"]) == ["rlbridge_gym"]


def test_nemo_rls_refusals_are_named_by_their_path(tmp_path: Path) -> None:
    wrong = {"policy.train_global_batch_size": "many", "cluster.num_nodes": "two"}
    with pytest.raises(ConfigError) as caught:
        compiled(tmp_path, nemo_rl=wrong)
    assert "policy.train_global_batch_size: Input should be a valid integer" in str(caught.value)
    assert "cluster.num_nodes: Input should be a valid integer" in str(caught.value)


@pytest.mark.parametrize(
    ("native", "named"),
    [
        ({"grpo.async_grpo.enabled": True}, "policy.generation.colocated.enabled=false"),
        ({"data_plane.enabled": True}, "nemo_rl.data_plane.enabled"),
        ({"defaults": "examples/configs/none.yaml"}, "nemo_rl.defaults: there is no .*none.yaml"),
        ({"grpo.seed": "${no.such.key}"}, "no.such.key"),
    ],
)
def test_what_could_not_work_is_refused_before_a_start(
    tmp_path: Path, native: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        compiled(tmp_path, nemo_rl=native)


def test_async_grpo_gets_the_flags_it_needs(tmp_path: Path) -> None:
    native = compiled(
        tmp_path,
        nemo_rl={
            "grpo.async_grpo.enabled": True,
            "policy.generation.colocated.enabled": False,
            "policy.generation.colocated.resources.gpus_per_node": 1,
        },
        trainer={"gpus_per_node": 2},
    ).config
    assert native["policy"]["generation"]["vllm_cfg"]["async_engine"] is True
    loss = native["loss_fn"]
    assert loss["use_importance_sampling_correction"] is True
    assert loss["truncated_importance_sampling_ratio"] == 2.0  # algorithm.correction_threshold


def test_a_megatron_base_gets_the_learning_rate_and_no_half_of_another_optimizer(
    tmp_path: Path,
) -> None:
    native = compiled(
        tmp_path,
        nemo_rl={"defaults": "examples/configs/grpo_math_1B_megatron.yaml"},
        algorithm={"learning_rate": 3e-6, "normalize_by_std": False},
    ).config
    assert native["policy"]["optimizer"] is None
    assert native["policy"]["megatron_cfg"]["optimizer"]["lr"] == 3e-6
    assert native["grpo"]["adv_estimator"]["normalize_rewards"] is False


def test_another_base_may_be_named(tmp_path: Path) -> None:
    native = compiled(tmp_path, nemo_rl={"defaults": "examples/configs/grpo_math_8B.yaml"}).config
    assert native["policy"]["dtensor_cfg"]["enabled"] is True
    assert "math" not in native["env"]


def test_checkpoints_are_saved_in_the_format_that_nemo_rl_converts(tmp_path: Path) -> None:
    assert compiled(tmp_path).config["checkpointing"]["model_save_format"] == "torch_save"
    # Its first DTensor worker has one format, and refuses to be told.
    first = compiled(tmp_path, nemo_rl={"policy.dtensor_cfg._v2": False}).config
    assert first["checkpointing"]["model_save_format"] is None
    own = compiled(tmp_path, nemo_rl={"checkpointing.model_save_format": "safetensors"}).config
    assert own["checkpointing"]["model_save_format"] == "safetensors"


def test_a_dry_run_prints_what_runs_by_hand(tmp_path: Path) -> None:
    native = compiled(tmp_path, trainer={"nodes": 2, "gpus_per_node": 4})
    lines = native.by_hand.splitlines()
    assert any(line.startswith("cd ") for line in lines)
    driver = f"uv run {origin.uv_option()} python -m rlbridge_nemo_rl.driver"
    assert any(driver in line for line in lines)
    assert f"/models/p:/models/p,{tmp_path}:{tmp_path}" in lines[-1].replace(f"{ROOT}:{ROOT},", "")
    assert "sbatch --nodes=2 --gres=gpu:4 ray.sub" in lines[-1]
