"""Compiles an rlbridge run config into verl 0.9's own keys. Refuses what verl can't honour.

One function a section, so that a reader finds what a key becomes. Values go to verl as Hydra
overrides; those that verl's YAML doesn't declare get a `+`. The user's `verl:` section comes last
and wins.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from rlbridge.config import GymConfig
from rlbridge.errors import ConfigError
from rlbridge.hookspecs import NativeRun, StepMetrics
from rlbridge.run_config import RunConfig, flatten
from rlbridge_verl.overrides import nested, override, with_native

DRIVER = "rlbridge_verl.driver"
PKG = "pkg://rlbridge_verl"
# Actors that must live as long as the run, by the class names Ray puts into process titles.
COMPONENTS = ("AgentLoopWorker", "RewardLoopWorker", "WorkerDict", "vLLMHttpServer", "EngineCore")


class VerlBackend:
    """What `rlbridge run --framework verl` uses."""

    def compile(self, config: RunConfig, run_dir: Path) -> NativeRun:
        """Compile `config`; files of the run go under `run_dir`.

        Raises:
            ConfigError: a key holds what verl can't honour.
        """
        _refuse(config)
        keys = native_keys(config, run_dir)
        overrides = [override(key, value) for key, value in keys.items()]
        env = _environment(config, run_dir)
        by_hand = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
        prefix = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
        return NativeRun(
            config=nested(keys),
            argv=[sys.executable, "-m", DRIVER, *overrides],
            env=env,
            by_hand=f"mkdir -p {shlex.quote(str(run_dir))} && {prefix} {shlex.join(by_hand)}",
            metrics_path=run_dir / "verl_metrics.jsonl",
            read_metrics=read_metrics,
            secrets=_secrets(config, run_dir),
            components=COMPONENTS,
        )


def native_keys(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Dotted verl keys for `config`; a leading `+` marks a key that verl's YAML lacks."""
    keys = {
        **_data(config),
        **_policy(config),
        **_actor(config),
        **_rollout(config),
        **_reward(config, run_dir),
        **_trainer(config, run_dir),
    }
    if config.trainer.device == "cpu":
        keys |= _cpu()
    return with_native(keys, config.verl)


def _refuse(config: RunConfig) -> None:
    if config.nemo_rl:
        raise ConfigError("nemo_rl: native NeMo-RL keys mean nothing to verl; remove the section")
    mode = flatten(config.verl).get("trainer.v1.trainer_mode", "sync")
    if mode != "sync":
        raise ConfigError(
            f"verl.trainer.v1.trainer_mode={mode}: rlbridge launches verl's sync trainer only; "
            "for an async one keep your launcher and name NeMoGymReward in its config"
        )
    if config.rollout.prompts_per_step % config.algorithm.updates_per_step:
        raise ConfigError(
            f"algorithm.updates_per_step: {config.algorithm.updates_per_step} updates can't split "
            f"rollout.prompts_per_step={config.rollout.prompts_per_step} evenly"
        )
    if config.trainer.device == "cpu" and config.trainer.gpus_per_node * config.trainer.nodes > 1:
        raise ConfigError(
            "trainer: device cpu is one logical device: gpus_per_node and nodes are 1"
        )


def _data(config: RunConfig) -> dict[str, Any]:
    train = str(config.data.train.resolve())
    validation = config.data.validation
    return {
        "data.train_files": [train],
        "data.val_files": [str(validation.resolve()) if validation else train],
        "data.custom_cls.path": PKG,
        "data.custom_cls.name": "NeMoGymDataset",
        "data.train_batch_size": config.rollout.prompts_per_step,
        "data.max_prompt_length": config.data.max_prompt_tokens,
        "data.max_response_length": config.rollout.max_response_tokens,
        "data.shuffle": config.data.shuffle,
        "data.seed": config.trainer.seed,
        "data.dataloader_num_workers": 0,
    }


def _policy(config: RunConfig) -> dict[str, Any]:
    return {"actor_rollout_ref.model.path": str(config.policy.path.resolve())}


def _actor(config: RunConfig) -> dict[str, Any]:
    algorithm, actor = config.algorithm, "actor_rollout_ref.actor"
    return {
        "algorithm.adv_estimator": algorithm.name,
        "algorithm.norm_adv_by_std_in_grpo": algorithm.normalize_by_std,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.optim.lr": algorithm.learning_rate,
        f"{actor}.use_kl_loss": algorithm.kl_coef > 0,
        f"{actor}.kl_loss_coef": algorithm.kl_coef,
        f"{actor}.entropy_coeff": algorithm.entropy_coef,
        f"{actor}.ppo_mini_batch_size": config.rollout.prompts_per_step
        // algorithm.updates_per_step,
        f"{actor}.ppo_micro_batch_size_per_gpu": config.rollout.samples_per_prompt,
        f"{actor}.data_loader_seed": config.trainer.seed,
    }


def _rollout(config: RunConfig) -> dict[str, Any]:
    rollout = "actor_rollout_ref.rollout"
    length = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    return {
        f"{rollout}.name": "vllm",
        f"{rollout}.n": config.rollout.samples_per_prompt,
        f"{rollout}.temperature": config.rollout.temperature,
        f"{rollout}.top_p": config.rollout.top_p,
        f"{rollout}.max_model_len": length,
        f"{rollout}.max_num_batched_tokens": max(length, 8192),
        f"{rollout}.log_prob_micro_batch_size_per_gpu": config.rollout.samples_per_prompt,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.logprobs_mode": "processed_logprobs",
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.seed": config.trainer.seed,
        f"{rollout}.agent.num_workers": 1,
    }


def _reward(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    changed = config.gym.model_dump(
        mode="json", exclude_defaults=True, include=set(GymConfig.model_fields) - {"headers"}
    ) | {"url": config.gym.url}
    if config.gym.headers:
        changed["headers_file"] = str(_headers_file(run_dir))
    sampler = "trainer.v1.sampler"
    return {
        "reward.num_workers": config.trainer.nodes,
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.module.path": PKG,
        "reward.reward_manager.name": "NeMoGymReward",
        **{f"+reward.nemo_gym.{key}": value for key, value in changed.items()},
        "+reward.nemo_gym.ledger": str(run_dir.resolve() / "rewards"),
        f"{sampler}.custom_sampler.path": PKG,
        f"{sampler}.custom_sampler.name": "ValidRewardSampler",
        f"+{sampler}.sampler_kwargs.group_size": config.rollout.samples_per_prompt,
        f"+{sampler}.sampler_kwargs.max_invalid_share": config.trainer.max_invalid_share,
        f"+{sampler}.sampler_kwargs.window_steps": config.trainer.invalid_window_steps,
        f"+{sampler}.sampler_kwargs.stall_timeout_s": config.trainer.stall_timeout_s,
    }


def _headers_file(run_dir: Path) -> Path:
    return run_dir.resolve() / "gym_headers.json"


def _secrets(config: RunConfig, run_dir: Path) -> dict[Path, bytes]:
    """Request headers may hold keys: they travel in a private file, not in a command line."""
    headers = {name: value.get_secret_value() for name, value in config.gym.headers.items()}
    return {_headers_file(run_dir): orjson.dumps(headers)} if headers else {}


def _trainer(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    trainer = config.trainer
    return {
        "trainer.device": trainer.device,
        "trainer.n_gpus_per_node": trainer.gpus_per_node,
        "trainer.nnodes": trainer.nodes,
        "trainer.logger": ["file"],
        "trainer.project_name": "rlbridge",
        "trainer.experiment_name": run_dir.name,
        "trainer.total_training_steps": trainer.steps,
        # verl stops at whichever comes first; the steps are what the user chose.
        "trainer.total_epochs": 1_000_000,
        "trainer.val_before_train": False,
        "trainer.test_freq": trainer.validate_every or -1,
        "trainer.save_freq": trainer.save_every or -1,
        "trainer.resume_mode": "auto" if trainer.resume else "disable",
        "trainer.default_local_dir": str(run_dir.resolve() / "checkpoints"),
        "+ray_kwargs.ray_init.include_dashboard": False,
    }


def _cpu() -> dict[str, Any]:
    """What a machine without a GPU needs; each line gets by one obstacle."""
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    rollout, ray = "actor_rollout_ref.rollout", "ray_kwargs.ray_init"
    storage = "transfer_queue.backend.SimpleStorage"
    return {
        f"{model}.use_remove_padding": False,  # needs flash-attn
        f"{model}.enable_gradient_checkpointing": False,
        f"+{model}.override_config.attn_implementation": "sdpa",
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"+{actor}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"+{actor}.fsdp_config.mixed_precision.reduce_dtype": "fp32",
        f"+{actor}.fsdp_config.mixed_precision.buffer_dtype": "fp32",
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{rollout}.dtype": "float32",
        f"{rollout}.enforce_eager": True,
        f"{rollout}.free_cache_engine": False,  # no sleep mode on a CPU
        f"+{rollout}.enable_sleep_mode": False,
        f"{rollout}.load_format": "auto",
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes": 16,
        f"{ray}.num_cpus": 8,  # logical: actors wait on each other, not on cores
        f"+{ray}.num_gpus": 1,  # logical, the CPU platform's one device
        f"+{ray}.object_store_memory": 300_000_000,
        f"+{ray}._node_ip_address": "127.0.0.1",
        f"{storage}.num_data_storage_units": 1,  # eight of them starve few cores
        f"{storage}.total_storage_size": 4000,
    }


def _environment(config: RunConfig, run_dir: Path) -> dict[str, str]:
    env = {
        "VERL_FILE_LOGGER_PATH": str(run_dir.resolve() / "verl_metrics.jsonl"),
        "RLBRIDGE_RUN_DIR": str(run_dir.resolve()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.trainer.device == "cpu":
        env |= {
            "VERL_USE_EXTERNAL_MODULES": "rlbridge_verl.cpu_platform",
            "VERL_PLATFORM": "cpu",
            "VERL_ENGINE_DEVICE": "cuda",  # verl's override: its engines are registered for cuda
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",  # a first request would compile for a minute
            # Ray turns 127.0.0.1 into the node's address unless clusters are switched off, by the
            # switch it has for systems without them.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "HF_HUB_OFFLINE": "1",
        }
    return env


def read_metrics(line: Mapping[str, Any]) -> StepMetrics | None:
    """One line of verl's file logger, `{step, data}`, as a step; None for validation lines."""
    data = line.get("data", {})
    if "training/global_step" not in data:
        return None

    def number(name: str) -> float | None:
        value = data.get(name)
        return float(value) if isinstance(value, int | float) else None

    return StepMetrics(
        step=int(line["step"]),
        reward_mean=number("critic/score/mean"),
        response_tokens_mean=number("response_length/mean"),
        tokens_per_s=number("perf/throughput"),
        step_s=number("timing_s/step"),
        rollout_probs_diff_max=number("training/rollout_probs_diff_max"),
        native=data,
    )
