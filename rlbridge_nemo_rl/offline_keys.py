"""What a run config becomes for SFT and DPO on NeMo-RL: data made by `rlbridge transform`.

No rollouts and no Gym here: sections that speak of them are refused once they are set. A step
takes `rollout.prompts_per_step` rows.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge.run_config import RunConfig
from rlbridge_nemo_rl.keys import NO_EPOCH_LIMIT, largest_divisor
from rlbridge_nemo_rl.offline_rows import conversations, pairs

CONVERSATIONS = "rlbridge_nemo_rl.offline_dataset.ConversationDataset"
PAIRS = "rlbridge_nemo_rl.offline_dataset.PairDataset"
# A dataset, and what reads its rows without NeMo-RL.
_DATASETS: dict[str, tuple[str, Callable[[Path], Iterable[object]]]] = {
    "sft": (CONVERSATIONS, conversations),
    "dpo": (PAIRS, pairs),
}
_METRICS = {"sft": "val:val_loss", "dpo": "val:validation-default_loss"}
_BASE_MICRO_BATCH = {"sft": 1, "dpo": 2}  # of NeMo-RL's base YAMLs: what memory they are for
_TRACKERS = ("wandb", "tensorboard", "mlflow", "swanlab")
_MEANINGLESS = {
    "gym": None,
    "agent": None,
    "rollout": {"prompts_per_step", "max_response_tokens"},
    "algorithm": {"name", "learning_rate", "kl_coef"},
}


def offline_keys(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Dotted NeMo-RL keys of an SFT or DPO run.

    Raises:
        ConfigError: a key is set that means nothing here, or a row can't be learned from.
    """
    name, trainer, folder = config.algorithm.name, config.trainer, run_dir.resolve()
    refuse(config)
    gpus = trainer.gpus_per_node * trainer.nodes
    rows = config.rollout.prompts_per_step
    if rows % gpus:
        raise ConfigError(f"rollout.prompts_per_step: {rows} rows can't be split over {gpus} GPUs")
    path = str(config.policy.path.resolve())
    micro = largest_divisor(rows // gpus, _BASE_MICRO_BATCH[name])
    keys: dict[str, Any] = {
        "policy.model_name": path,
        "policy.tokenizer.name": path,
        "policy.tokenizer.chat_template": "default",  # the policy's own
        "policy.train_global_batch_size": rows,
        "policy.train_micro_batch_size": micro,
        "policy.max_total_sequence_length": config.data.max_prompt_tokens
        + config.rollout.max_response_tokens,
        "policy.optimizer.kwargs.lr": config.algorithm.learning_rate,
        "policy.megatron_cfg.optimizer.lr": config.algorithm.learning_rate,
        "policy.megatron_cfg.optimizer.min_lr": config.algorithm.learning_rate,
        "policy.megatron_cfg.scheduler.lr_warmup_init": 0.0,  # may not be above the rate
        "data": _data(config),
        f"{name}.max_num_steps": trainer.steps,
        f"{name}.max_num_epochs": NO_EPOCH_LIMIT,
        f"{name}.seed": trainer.seed,
        f"{name}.val_period": trainer.validate_every or 0,
        f"{name}.val_at_start": False,
        f"{name}.val_at_end": False,
        f"{name}.val_batches": 0,  # all of them
        f"{name}.val_global_batch_size": rows,
        f"{name}.val_micro_batch_size": micro,
        "cluster.gpus_per_node": trainer.gpus_per_node,
        "cluster.num_nodes": trainer.nodes,
        "logger.log_dir": str(folder / "nemo_rl_logs"),
        # NeMo-RL's sft.yaml turns on what needs an account and a network.
        **{f"logger.{tracker}_enabled": False for tracker in _TRACKERS},
        "logger.wandb.name": folder.name,
        "logger.swanlab.name": folder.name,
        "logger.mlflow.run_name": folder.name,
        "checkpointing.enabled": trainer.save_every is not None,
        "checkpointing.checkpoint_dir": str(folder / "checkpoints"),
        "checkpointing.metric_name": _METRICS[name] if trainer.validate_every else None,
        "rlbridge": {"algorithm": name, "run_dir": str(folder)},
    }
    if trainer.save_every is not None:
        keys["checkpointing.save_period"] = trainer.save_every
    if name == "dpo":
        keys["dpo.reference_policy_kl_penalty"] = config.algorithm.kl_coef
    return keys


def refuse(config: RunConfig) -> None:
    """Refuse what is set and means nothing without rollouts.

    Raises:
        ConfigError: naming the key.
    """
    name = config.algorithm.name
    for section, known in _MEANINGLESS.items():
        found = getattr(config, section).model_fields_set - (known or set())
        if found:
            raise ConfigError(
                f"{section}.{min(found)}: means nothing to algorithm.name={name}, which learns "
                "from rows and not from rollouts; remove it"
            )
    if config.verl:
        raise ConfigError("verl: verl's native keys mean nothing to NeMo-RL; remove the section")
    if config.data.mix:
        raise ConfigError(f"data.mix: {name} takes one file; join them with `rlbridge transform`")
    if config.data.prompt:
        raise ConfigError(f"data.prompt: rows for {name} hold whole conversations; remove it")
    if config.trainer.device == "cpu":
        raise ConfigError("trainer.device=cpu: NeMo-RL trains on GPUs only")
    if name == "dpo" and config.algorithm.kl_coef <= 0:
        raise ConfigError("algorithm.kl_coef: DPO needs one above 0 (its beta), 0.1 say")
    if config.trainer.validate_every is not None and config.data.validation is None:
        raise ConfigError("trainer.validate_every: there is nothing to validate on")


def _data(config: RunConfig) -> dict[str, Any]:
    name, rows = config.algorithm.name, config.rollout.prompts_per_step
    train, validation = config.data.train.resolve(), config.data.validation
    dataset, read = _DATASETS[name]
    found = sum(1 for _ in read(train))
    if found < rows:  # NeMo-RL drops what doesn't fill a step, and would look for one for ever
        raise ConfigError(
            f"rollout.prompts_per_step: a step takes {rows} rows, and {train} holds {found}"
        )
    section: dict[str, Any] = {
        "max_input_seq_length": "${policy.max_total_sequence_length}",
        "shuffle": config.data.shuffle,
        "num_workers": 1,
        # In each section, not in `default`: base YAMLs refer to train.dataset_name.
        "train": {"dataset_name": dataset, "data_path": str(train)},
        "validation": None,
        "default": {"prompt_file": None, "system_prompt_file": None},
    }
    if validation is not None:
        path = validation.resolve()
        sum(1 for _ in read(path))
        section["validation"] = {"dataset_name": dataset, "data_path": str(path)}
    if name == "sft":  # asked for, and without meaning to our dataset: the template decides
        section |= {"add_bos": False, "add_eos": False, "add_generation_prompt": False}
    return section
