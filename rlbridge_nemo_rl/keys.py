"""What each section of a run config becomes in NeMo-RL's own keys. Imports no NeMo-RL.

One function a section, so that a reader finds what a key becomes; docs/nemo_rl.md has the same as
a table. What NeMo-RL can't honour is an error that names the key, never dropped.
"""

from pathlib import Path
from typing import Any

from rlbridge.config import GymConfig
from rlbridge.errors import ConfigError
from rlbridge.launch import idle
from rlbridge.prompts import located
from rlbridge.rows import read_rows
from rlbridge.run_config import RunConfig, flatten
from rlbridge_nemo_rl import agent_keys

DATASET = "rlbridge_nemo_rl.GymDataset"
ENVIRONMENT = "rlbridge_gym"
NO_EPOCH_LIMIT = 1_000_000  # NeMo-RL stops at whichever comes first; the steps are what was chosen
BASE_MICRO_BATCH = 4  # of NeMo-RL's base YAML


def grpo_keys(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Dotted NeMo-RL keys of a GRPO run.

    Args:
        config: the run; of its `nemo_rl` section only what `agent_keys` needs is looked at.
        run_dir: where the run leaves its files.

    Raises:
        ConfigError: a key holds what NeMo-RL can't honour.
    """
    refuse(config)
    return {
        **_data(config),
        **_policy(config),
        **_algorithm(config),
        **_rollout(config),
        **_environment(config, run_dir),
        **_trainer(config),
        **_files(config, run_dir),
        **_ours(config, run_dir),
        **(agent_keys.agent_keys(config) if config.agent.loop == "run" else {}),
    }


def refuse(config: RunConfig) -> None:
    """Refuse what NeMo-RL has no counterpart for.

    Raises:
        ConfigError: naming the key.
    """
    rules = (
        (
            bool(config.verl),
            "verl: verl's native keys mean nothing to NeMo-RL; remove the section, or run it with "
            "--framework verl",
        ),
        (
            config.trainer.device == "cpu",
            "trainer.device=cpu: NeMo-RL trains and samples on GPUs only; use --framework verl",
        ),
        (
            config.algorithm.entropy_coef > 0,
            "algorithm.entropy_coef: NeMo-RL's loss has no entropy bonus; set it to 0",
        ),
        (
            config.algorithm.rollout_correction == "sequence",
            "algorithm.rollout_correction=sequence: NeMo-RL truncates the weights of tokens, or "
            "masks whole responses; set it to token, or set nemo_rl.loss_fn."
            "truncated_importance_sampling_type yourself",
        ),
        (
            config.agent.workers != 1 and config.agent.loop != "run",
            "agent.workers: NeMo-RL's rollouts run in its own processes; remove it",
        ),
        (
            config.algorithm.rollout_correction == "none" and is_async(config),
            "algorithm.rollout_correction=none: NeMo-RL's async GRPO insists on weighing tokens; "
            "set token or auto",
        ),
    )
    for broken, message in rules:
        if broken:
            raise ConfigError(message)
    if config.agent.loop == "run":
        agent_keys.refuse(config)
    idle.refuse(config, _idle(config))
    samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    if samples % config.algorithm.updates_per_step:
        raise ConfigError(
            f"algorithm.updates_per_step: {config.algorithm.updates_per_step} updates can't split "
            f"{samples} samples a step evenly"
        )
    gpus = config.trainer.gpus_per_node * config.trainer.nodes
    if samples // config.algorithm.updates_per_step % gpus:
        raise ConfigError(
            f"rollout.prompts_per_step: {samples // config.algorithm.updates_per_step} samples an "
            f"update can't be split evenly among {gpus} GPUs"
        )


def _idle(config: RunConfig) -> dict[str, str]:
    """Keys that do nothing in this run, and why."""
    found = idle.of_run(config) | idle.of_rollouts(config)
    if config.agent.loop == "run":
        found |= agent_keys.idle_keys(config)
    if not _weighs_tokens(config):
        found["algorithm.correction_threshold"] = (
            "nothing is truncated here; set algorithm.rollout_correction=token, or remove it"
        )
    return found


def is_async(config: RunConfig) -> bool:
    """Whether the user's own keys ask for async GRPO."""
    return bool(flatten(config.nemo_rl).get("grpo.async_grpo.enabled"))


def _weighs_tokens(config: RunConfig) -> bool:
    """Whether tokens are weighed by importance, truncated."""
    wanted = config.algorithm.rollout_correction
    return wanted == "token" or (wanted == "auto" and is_async(config))


def _data(config: RunConfig) -> dict[str, Any]:
    runs = config.agent.loop == "run"
    dataset = {"dataset_name": agent_keys.DATASET if runs else DATASET}
    if config.agent.servers:
        dataset["agent"] = agent_keys.DEFAULT_AGENT
    train: dict[str, Any] = {**dataset, "split": "train"}
    train |= _file(config.data.train, config.data.prompt)
    if config.data.mix:
        train["mix"] = [
            {**_file(mixed.path, mixed.prompt), "weight": mixed.weight} for mixed in config.data.mix
        ]
    validation = config.data.validation
    return {
        "data": {
            "train": train,
            "validation": None
            if validation is None
            else {
                **dataset,
                "split": "validation",
                **_file(validation, config.data.prompt),
            },
            "default": {
                "env_name": agent_keys.ENVIRONMENT if runs else ENVIRONMENT,
                "processor": agent_keys.PROCESSOR if runs else ENVIRONMENT,
                "prompt_file": None,
                "system_prompt_file": None,
            },
            "max_input_seq_length": config.data.max_prompt_tokens,
            "shuffle": config.data.shuffle,
            "num_workers": 1,
            "use_multiple_dataloader": False,
        }
    }


def _file(path: Path, prompt: str | None) -> dict[str, Any]:
    return {"data_path": str(path.resolve())} | ({"prompt": located(prompt)} if prompt else {})


def _policy(config: RunConfig) -> dict[str, Any]:
    path = str(config.policy.path.resolve())
    samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    batch = samples // config.algorithm.updates_per_step
    gpus = config.trainer.gpus_per_node * config.trainer.nodes
    return {
        "policy.model_name": path,
        "policy.tokenizer.name": path,
        "policy.max_total_sequence_length": config.data.max_prompt_tokens
        + config.rollout.max_response_tokens,
        "policy.train_global_batch_size": batch,
        "policy.train_micro_batch_size": largest_divisor(batch // gpus, BASE_MICRO_BATCH),
    }


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(size for size in range(limit, 0, -1) if number % size == 0)


def _algorithm(config: RunConfig) -> dict[str, Any]:
    algorithm = config.algorithm
    corrected = _weighs_tokens(config)
    return {
        "grpo.adv_estimator.name": algorithm.name,
        "grpo.normalize_rewards": algorithm.normalize_by_std,
        # verl's baseline is the mean of the whole group; the same config means the same here.
        "grpo.use_leave_one_out_baseline": False,
        # What is computed with; NeMo-RL's base YAMLs refer it to the two above, others may not.
        "grpo.adv_estimator.normalize_rewards": algorithm.normalize_by_std,
        "grpo.adv_estimator.use_leave_one_out_baseline": False,
        "grpo.skip_reference_policy_logprobs_calculation": algorithm.kl_coef == 0,
        "policy.optimizer.kwargs.lr": algorithm.learning_rate,
        "policy.megatron_cfg.optimizer.lr": algorithm.learning_rate,
        "policy.megatron_cfg.optimizer.min_lr": algorithm.learning_rate,
        "loss_fn.reference_policy_kl_penalty": algorithm.kl_coef,
        "loss_fn.use_importance_sampling_correction": corrected,
        "loss_fn.truncated_importance_sampling_type": "tis" if corrected else None,
        "loss_fn.truncated_importance_sampling_ratio": algorithm.correction_threshold
        if corrected
        else None,
    }


def _rollout(config: RunConfig) -> dict[str, Any]:
    rollout, generation = config.rollout, "policy.generation"
    return {
        "grpo.num_prompts_per_step": rollout.prompts_per_step,
        "grpo.num_generations_per_prompt": rollout.samples_per_prompt,
        "grpo.max_rollout_turns": max_turns(config),
        f"{generation}.max_new_tokens": rollout.max_response_tokens,
        f"{generation}.temperature": rollout.temperature,
        f"{generation}.top_p": rollout.top_p,
    }


def max_turns(config: RunConfig) -> int:
    """Answers of the policy a rollout may have."""
    return config.agent.max_turns if config.agent.loop == "tools" else 1


def _environment(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """The environment's own section, which takes the place of all others."""
    if config.agent.loop == "run":
        return {}  # an agent's /run gives the reward
    section = config.gym.model_dump(
        mode="json", exclude_defaults=True, include=set(GymConfig.model_fields) - {"headers"}
    ) | {"url": config.gym.url, "ledger": str(run_dir.resolve() / "rewards")}
    if config.gym.servers:
        section["servers"] = dict(config.gym.servers)
    if config.gym.headers:
        section["headers_file"] = str(headers_file(run_dir))
    if config.agent.loop == "tools":
        section |= {
            "policy": str(config.policy.path.resolve()),
            "max_turns": config.agent.max_turns,
            "max_tool_output_chars": config.agent.max_tool_output_chars,
            "parallel_tool_calls": config.agent.parallel_tool_calls,
        }
    return {"env": {ENVIRONMENT: section}}


def headers_file(run_dir: Path) -> Path:
    """Where request headers travel: they may hold keys, which no YAML shows."""
    return run_dir.resolve() / "gym_headers.json"


def _trainer(config: RunConfig) -> dict[str, Any]:
    trainer = config.trainer
    validates = trainer.validate_every is not None and config.data.validation is not None
    rows = len(read_rows(config.data.validation)) if validates and config.data.validation else 1
    return {
        "grpo.max_num_steps": trainer.steps,
        "grpo.max_num_epochs": NO_EPOCH_LIMIT,
        "grpo.seed": trainer.seed,
        "grpo.val_period": trainer.validate_every or 0,
        "grpo.val_at_start": False,
        "grpo.val_at_end": False,
        "grpo.max_val_samples": rows,
        "grpo.val_batch_size": rows,
        "cluster.gpus_per_node": trainer.gpus_per_node,
        "cluster.num_nodes": trainer.nodes,
    }


def _files(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    folder, every = run_dir.resolve(), config.trainer.save_every
    keys: dict[str, Any] = {
        "logger.log_dir": str(folder / "nemo_rl_logs"),
        "checkpointing.enabled": every is not None,
        "checkpointing.checkpoint_dir": str(folder / "checkpoints"),
        # The best by validation where there is any, else the newest.
        "checkpointing.metric_name": "val:accuracy" if config.trainer.validate_every else None,
    }
    return keys | ({"checkpointing.save_period": every} if every is not None else {})


def _ours(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """What our driver reads; NeMo-RL keeps keys it doesn't know."""
    trainer = config.trainer
    return {
        "rlbridge": {
            "algorithm": config.algorithm.name,
            "run_dir": str(run_dir.resolve()),
            "max_invalid_share": trainer.max_invalid_share,
            "invalid_window_steps": trainer.invalid_window_steps,
            "stall_timeout_s": trainer.stall_timeout_s,
        }
    }
