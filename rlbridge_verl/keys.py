"""What each section of a run config becomes in verl 0.9's own keys. Checks nothing.

One function a section, so that a reader finds what a key becomes. A leading `+` marks a key that
verl's YAML doesn't declare.
"""

from pathlib import Path
from typing import Any

from rlbridge.config import GymConfig
from rlbridge.prompts import located
from rlbridge.run_config import RunConfig, flatten
from rlbridge_verl.overrides import with_native

PKG = "pkg://rlbridge_verl"
AGENT_LOOPS = Path(__file__).with_name("agent_loops.yaml")
LOOP_NAMES = {
    "single_turn": "single_turn_agent",
    "tools": "nemo_gym_tools",
    "run": "nemo_gym_run",
}
SAMPLERS = {"sync": "ValidRewardSampler", "colocate_async": "ValidRewardSamplerAsync"}


def trainer_mode(config: RunConfig) -> str:
    """Which of verl's V1 trainers the user's own keys ask for."""
    return str(flatten(config.verl).get("trainer.v1.trainer_mode", "sync"))


def native_keys(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Dotted verl keys for `config`; a leading `+` marks a key that verl's YAML lacks."""
    keys = {
        **_data(config),
        **_policy(config),
        **_actor(config),
        **_rollout(config),
        **_agent(config),
        **_correction(config),
        **_reward(config, run_dir),
        **_trainer(config, run_dir),
    }
    if config.trainer.device == "cpu":
        keys |= _cpu()
    return with_native(keys, config.verl)


def _data(config: RunConfig) -> dict[str, Any]:
    train = [str(config.data.train.resolve())]
    train += [str(mixed.path.resolve()) for mixed in config.data.mix]
    validation = config.data.validation
    weights = [1.0, *(mixed.weight for mixed in config.data.mix)]
    named = [config.data.prompt, *(mixed.prompt for mixed in config.data.mix)]
    prompts = [located(prompt) if prompt else None for prompt in named]
    return {
        "data.train_files": train,
        **({"+data.nemo_gym_weights": weights} if config.data.mix else {}),
        **({"+data.nemo_gym_prompt": prompts} if any(prompts) else {}),
        "data.val_files": [str(validation.resolve())] if validation else train,
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
        # verl appends its rows of padding: unshuffled, the last update of a step could be left
        # with a few trajectories, at the weight of a whole one.
        f"{actor}.shuffle": True,
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
    }


def _agent(config: RunConfig) -> dict[str, Any]:
    agent, rollout = config.agent, "actor_rollout_ref.rollout"
    keys: dict[str, Any] = {
        f"{rollout}.agent.num_workers": agent.workers,
        f"{rollout}.agent.default_agent_loop": LOOP_NAMES[agent.loop],
    }
    if agent.loop == "single_turn":
        return keys
    turns = f"{rollout}.multi_turn"
    keys |= {
        f"{rollout}.agent.agent_loop_config_path": str(AGENT_LOOPS),
        f"{turns}.max_assistant_turns": agent.max_turns,
        f"{turns}.max_tool_response_length": agent.max_tool_output_chars,
        f"{turns}.max_parallel_calls": 16 if agent.parallel_tool_calls else 1,
    }
    if agent.servers:
        servers = [server.model_dump(mode="json") for server in agent.servers]
        keys["+reward.nemo_gym.agents"] = servers
    return keys


def _correction(config: RunConfig) -> dict[str, Any]:
    """Truncated importance sampling, over logprobs of what was sampled from (see `_rollout`).

    The trainer divides its logits by the temperature too, so that equal weights give a ratio of 1.
    """
    level, correction = correction_level(config), "algorithm.rollout_correction"
    if level == "none":
        return {}
    return {
        f"{correction}.rollout_is": level,
        f"{correction}.rollout_is_threshold": config.algorithm.correction_threshold,
    }


def correction_level(config: RunConfig) -> str:
    """What is weighed by importance: "none", "token" or "sequence"."""
    level = config.algorithm.rollout_correction
    if level == "auto":
        return "none" if trainer_mode(config) == "sync" else "token"
    return level


def _reward(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    changed = config.gym.model_dump(
        mode="json", exclude_defaults=True, include=set(GymConfig.model_fields) - {"headers"}
    )
    if config.agent.loop != "run":  # there an agent's /run gives the reward
        changed["url"] = config.gym.url
    if config.gym.headers:
        changed["headers_file"] = str(headers_file(run_dir))
    sampler = "trainer.v1.sampler"
    return {
        "reward.num_workers": config.trainer.nodes,
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.module.path": PKG,
        "reward.reward_manager.name": "NeMoGymReward",
        **{f"+reward.nemo_gym.{key}": value for key, value in changed.items()},
        **({"+reward.nemo_gym.servers": config.gym.servers} if config.gym.servers else {}),
        "+reward.nemo_gym.ledger": str(run_dir.resolve() / "rewards"),
        f"{sampler}.custom_sampler.path": PKG,
        f"{sampler}.custom_sampler.name": SAMPLERS[trainer_mode(config)],
        f"+{sampler}.sampler_kwargs.group_size": config.rollout.samples_per_prompt,
        f"+{sampler}.sampler_kwargs.max_invalid_share": config.trainer.max_invalid_share,
        f"+{sampler}.sampler_kwargs.window_steps": config.trainer.invalid_window_steps,
        f"+{sampler}.sampler_kwargs.stall_timeout_s": config.trainer.stall_timeout_s,
    }


def headers_file(run_dir: Path) -> Path:
    """Where a run keeps the request headers that may hold keys."""
    return run_dir.resolve() / "gym_headers.json"


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
        **_ray(config),
    }


def _ray(config: RunConfig) -> dict[str, Any]:
    if config.ray.address:
        return {"+ray_kwargs.ray_init.address": config.ray.address}
    return {"+ray_kwargs.ray_init.include_dashboard": False}


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
