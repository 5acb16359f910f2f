"""The verl backend without training: keys against verl's own schema, rows, patches' guards."""

from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

from rlbridge.errors import ConfigError, PluginError
from rlbridge.run_config import load_run_config
from rlbridge_verl import cpu_patches
from rlbridge_verl.backend import VerlBackend, native_keys, read_metrics

BASE = "policy: {path: p}\ndata: {train: rows.jsonl}\n"

# verl and what it imports warn about their own futures.
pytestmark = pytest.mark.filterwarnings("ignore")


def _config(tmp_path: Path, *overrides: str) -> Any:
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    return load_run_config(path, overrides)


def _composed(tmp_path: Path, *overrides: str) -> Any:
    import hydra

    native = VerlBackend().compile(_config(tmp_path, *overrides), tmp_path / "out")
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", overrides=native.argv[3:])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_compiled_key_is_one_of_verls_own(tmp_path: Path, device: str) -> None:
    # Hydra refuses a key that verl's YAML lacks unless it is marked with "+".
    composed = _composed(tmp_path, f"trainer.device={device}", "rollout.samples_per_prompt=4")
    assert composed.actor_rollout_ref.rollout.n == 4
    assert composed.reward.reward_manager.name == "NeMoGymReward"
    assert composed.reward.nemo_gym.url == "http://127.0.0.1:18080"
    assert composed.data.train_files == [str(Path("rows.jsonl").resolve())]


def test_native_keys_win_over_compiled_ones_with_or_without_a_plus(tmp_path: Path) -> None:
    composed = _composed(
        tmp_path,
        "trainer.device=cpu",
        "verl.actor_rollout_ref.rollout.n=3",
        "verl.actor_rollout_ref.model.override_config.attn_implementation=eager",
        "verl.actor_rollout_ref.actor.clip_ratio=0.3",
    )
    assert composed.actor_rollout_ref.rollout.n == 3
    assert composed.actor_rollout_ref.model.override_config.attn_implementation == "eager"
    assert composed.actor_rollout_ref.actor.clip_ratio == 0.3


def test_a_value_with_spaces_quotes_and_brackets_survives_hydra(tmp_path: Path) -> None:
    text = 'a "b" [c] {d}, $e'
    composed = _composed(tmp_path, f"verl.trainer.experiment_name={orjson.dumps(text).decode()}")
    assert composed.trainer.experiment_name == text


@pytest.mark.parametrize("path", sorted(Path("examples/verl").glob("*.yaml")), ids=str)
def test_every_example_compiles_to_keys_that_verls_schema_takes(path: Path, tmp_path: Path) -> None:
    import hydra
    from verl.utils.config import omega_conf_to_dataclass

    config = load_run_config(path)
    native = VerlBackend().compile(config, tmp_path / "out")
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        composed = hydra.compose("ppo_trainer", overrides=native.argv[3:])
    # Beyond the YAML: the dataclasses that verl's workers make of these sections.
    for section in ("rollout", "actor", "model"):
        part = composed.actor_rollout_ref[section]
        if section == "model":
            part.path = str(_tokenizer_folder(tmp_path))
        omega_conf_to_dataclass(part)
    assert composed.actor_rollout_ref.rollout.n == config.rollout.samples_per_prompt


def test_tools_environments_and_a_cluster_reach_verls_keys(tmp_path: Path) -> None:
    composed = _composed(
        tmp_path,
        "agent.loop=tools",
        "agent.max_turns=5",
        "gym.servers={weather: 'http://127.0.0.1:2'}",
        f"data.mix=[{{path: {tmp_path}/more.jsonl, weight: 0.5}}]",
        "algorithm.rollout_correction=token",
        "ray.address=auto",
    )
    rollout = composed.actor_rollout_ref.rollout
    assert rollout.agent.default_agent_loop == "nemo_gym_tools"
    assert Path(rollout.agent.agent_loop_config_path).exists()
    assert rollout.multi_turn.max_assistant_turns == 5
    assert composed.reward.nemo_gym.servers.weather == "http://127.0.0.1:2"
    assert composed.data.nemo_gym_weights == [1.0, 0.5]
    assert len(composed.data.train_files) == 2
    assert composed.algorithm.rollout_correction.rollout_is == "token"
    assert composed.ray_kwargs.ray_init.address == "auto"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ray.address=auto", "a Ray of its own"),
        ("verl.algorithm.filter_groups.enable=true", "takes its place"),
        ("agent.loop=run", "0 agents for agent.workers=1"),
        ("nemo_rl.a=1", "mean nothing to verl"),
        ("algorithm.updates_per_step=3", "can't split"),
        ("trainer.nodes=2", "one logical device"),
        ("verl.trainer.v1.trainer_mode=separate_async", "launches sync and colocate_async"),
    ],
)
def test_what_verl_cannot_honour_is_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VerlBackend().compile(_config(tmp_path, "trainer.device=cpu", override), tmp_path)


def test_an_estimator_that_counts_trajectories_is_refused_where_a_rollout_has_several(
    tmp_path: Path,
) -> None:
    other = "verl.algorithm.adv_estimator=rloo"
    with pytest.raises(ConfigError, match="adv_estimator=rloo"):
        VerlBackend().compile(_config(tmp_path, "agent.loop=run", other), tmp_path)
    VerlBackend().compile(_config(tmp_path, other), tmp_path)


def test_an_async_trainer_gets_its_sampler_and_importance_weights(tmp_path: Path) -> None:
    composed = _composed(tmp_path, "verl.trainer.v1.trainer_mode=colocate_async")
    assert composed.trainer.v1.trainer_mode == "colocate_async"
    assert composed.trainer.v1.sampler.custom_sampler.name == "ValidRewardSamplerAsync"
    assert composed.algorithm.rollout_correction.rollout_is == "token"
    assert "algorithm.rollout_correction.rollout_is" not in native_keys(_config(tmp_path), tmp_path)


RAW = "verl.actor_rollout_ref.rollout.logprobs_mode=raw_logprobs"


@pytest.mark.parametrize("other", ["rollout.temperature=0.7", "rollout.top_p=0.9"])
def test_raw_logprobs_are_refused_where_they_are_not_what_was_sampled_from(
    tmp_path: Path, other: str
) -> None:
    with pytest.raises(ConfigError, match="would be biased"):
        VerlBackend().compile(_config(tmp_path, RAW, other), tmp_path)
    VerlBackend().compile(_config(tmp_path, RAW), tmp_path)


def test_a_gpu_run_carries_no_cpu_workaround(tmp_path: Path) -> None:
    native = VerlBackend().compile(_config(tmp_path, "trainer.device=cuda"), tmp_path)
    assert not [name for name in native.env if name.startswith(("VERL_PLATFORM", "VLLM_CPU"))]
    keys = native_keys(_config(tmp_path, "trainer.device=cuda"), tmp_path)
    assert "+ray_kwargs.ray_init.num_gpus" not in keys


def test_the_command_by_hand_is_verls_own_entry_point(tmp_path: Path) -> None:
    native = VerlBackend().compile(_config(tmp_path), tmp_path)
    assert "-m verl.trainer.main_ppo" in native.by_hand
    assert native.config["reward"]["reward_manager"]["source"] == "importlib"


def test_a_key_in_a_request_header_stays_out_of_the_command_line(tmp_path: Path) -> None:
    native = VerlBackend().compile(
        _config(tmp_path, "gym.headers={Authorization: s3cret}"), tmp_path
    )
    assert "s3cret" not in native.by_hand + str(native.argv) + str(native.config)
    (content,) = native.secrets.values()
    assert orjson.loads(content) == {"Authorization": "s3cret"}


def test_metrics_of_a_validation_line_are_no_step() -> None:
    assert read_metrics({"step": 3, "data": {"val-core/x": 1.0}}) is None
    step = read_metrics({"step": 3, "data": {"training/global_step": 3, "critic/score/mean": 0.5}})
    assert step is not None
    assert (step.step, step.reward_mean, step.tokens_per_s) == (3, 0.5, None)


def test_the_patches_refuse_a_version_they_were_not_checked_with() -> None:
    with pytest.raises(PluginError, match=r"checked with verl 0\.1\.x, not"):
        cpu_patches._require("verl", ("0.1.",))


def _tokenizer_folder(tmp_path: Path) -> Path:
    """A model folder as far as verl's config looks into it."""
    from transformers import Qwen2Config

    from tests.verl.dialogues import tokenizer_of

    folder = tmp_path / "model"
    tokenizer_of().save_pretrained(folder)
    Qwen2Config(architectures=["Qwen2ForCausalLM"]).save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    class Words:
        """As much of a tokenizer as counting prompt tokens takes."""

        def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> list[int]:
            return list(range(sum(len(m["content"].split()) for m in messages)))

    return Words()


def _dataset(tmp_path: Path, limit: int = 10) -> Any:
    from omegaconf import OmegaConf

    from rlbridge_verl import NeMoGymDataset

    row = {
        "responses_create_params": {"input": "what is it"},
        "options": [{"A": None}, {"B": [1, 2.5]}],
        "agent_ref": {"name": "mcqa"},
    }
    path = tmp_path / "rows.jsonl"
    path.write_bytes(orjson.dumps(row) + b"\n")
    config = OmegaConf.create({"max_prompt_length": limit})
    return NeMoGymDataset([str(path)], _tokenizer(), config), row


def test_a_dataset_row_reaches_the_reward_untouched(tmp_path: Path) -> None:
    dataset, row = _dataset(tmp_path)
    item = dataset[0]
    assert orjson.loads(item["extra_info"]["gym_row"]) == row
    assert item["raw_prompt"] == [{"role": "user", "content": "what is it"}]
    assert (item["data_source"], item["index"]) == ("mcqa", 0)


def test_a_prompt_beyond_the_limit_is_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: the prompt has 3 tokens"):
        _dataset(tmp_path, limit=2)
