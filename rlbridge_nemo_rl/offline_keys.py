"""What a run config becomes for SFT and DPO on NeMo-RL: data made by `rlbridge transform`.

No rollouts and no Gym here: sections that speak of them are refused once they are set. A step
takes `rollout.prompts_per_step` rows.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge.launch import idle
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
_PACKED = (".gz", ".zst", ".parquet")
_TRACKERS = ("wandb", "tensorboard", "mlflow", "swanlab")
# Sections about rollouts, and what means something in them all the same.
_OF_ROLLOUTS = ("gym", "agent", "rollout", "algorithm")
_MEANT = {
    "rollout.prompts_per_step", "rollout.max_response_tokens",
    "algorithm.name", "algorithm.learning_rate", "algorithm.kl_coef",
}  # fmt: skip
_STOPS = ("trainer.max_invalid_share", "trainer.invalid_window_steps", "trainer.stall_timeout_s")


def offline_keys(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Dotted NeMo-RL keys of an SFT or DPO run.

    Raises:
        ConfigError: a key is set that means nothing here, or a row can't be learned from.
    """
    refuse(config)
    name = config.algorithm.name
    keys = {
        **_policy(config),
        **_loop(config),
        **_files(config, run_dir.resolve()),
        "data": _data(config),
        "rlbridge": {"algorithm": name, "run_dir": str(run_dir.resolve())},
    }
    if name == "dpo":
        keys["dpo.reference_policy_kl_penalty"] = config.algorithm.kl_coef
    return keys


def refuse(config: RunConfig) -> None:
    """Refuse what is set and means nothing without rollouts.

    Raises:
        ConfigError: naming the key.
    """
    name, data, trainer = config.algorithm.name, config.data, config.trainer
    idle.refuse(config, _idle(config))
    gpus, rows = trainer.gpus_per_node * trainer.nodes, config.rollout.prompts_per_step
    packed = next((p for p in (data.train, data.validation) if p and p.suffix in _PACKED), None)
    has_kl = config.algorithm.kl_coef > 0
    rules = (
        (
            config.verl,
            "verl: verl's native keys mean nothing to NeMo-RL, and verl has no such run; remove "
            "the section",
        ),
        (data.mix, f"data.mix: {name} takes one file; join them with `rlbridge transform`"),
        (data.prompt, f"data.prompt: rows for {name} hold whole conversations; remove it"),
        (
            packed,
            f"data: {packed} is packed; make it a .jsonl file, which `rlbridge transform {name}` "
            "writes as plain lines",
        ),
        (trainer.device == "cpu", "trainer.device=cpu: NeMo-RL trains on GPUs only"),
        (rows % gpus, f"rollout.prompts_per_step: {rows} rows can't be split over {gpus} GPUs"),
        (
            name == "dpo" and not has_kl,
            "algorithm.kl_coef: DPO needs one above 0 (its beta), 0.1 say",
        ),
        (name == "sft" and has_kl, "algorithm.kl_coef: SFT has no policy to stay near; remove it"),
    )
    for broken, message in rules:
        if broken:
            raise ConfigError(message)


def _idle(config: RunConfig) -> dict[str, str]:
    why = (
        f"means nothing to algorithm.name={config.algorithm.name}, which learns from rows and not "
        "from rollouts; remove it"
    )
    keys = {key for section in _OF_ROLLOUTS for key in idle.keys_of(section)} - _MEANT
    return idle.of_run(config) | dict.fromkeys((*keys, *_STOPS), why)


def _policy(config: RunConfig) -> dict[str, Any]:
    path, rate = str(config.policy.path.resolve()), config.algorithm.learning_rate
    return {
        "policy.model_name": path,
        "policy.tokenizer.name": path,
        "policy.tokenizer.chat_template": "default",  # the policy's own
        "policy.train_global_batch_size": config.rollout.prompts_per_step,
        "policy.train_micro_batch_size": _micro_batch(config),
        "policy.max_total_sequence_length": config.data.max_prompt_tokens
        + config.rollout.max_response_tokens,
        "policy.optimizer.kwargs.lr": rate,
        "policy.megatron_cfg.optimizer.lr": rate,
        "policy.megatron_cfg.optimizer.min_lr": rate,
        "policy.megatron_cfg.scheduler.lr_warmup_init": 0.0,  # may not be above the rate
        "cluster.gpus_per_node": config.trainer.gpus_per_node,
        "cluster.num_nodes": config.trainer.nodes,
    }


def _micro_batch(config: RunConfig) -> int:
    per_gpu = config.rollout.prompts_per_step // (
        config.trainer.gpus_per_node * config.trainer.nodes
    )
    return largest_divisor(per_gpu, _BASE_MICRO_BATCH[config.algorithm.name])


def _loop(config: RunConfig) -> dict[str, Any]:
    name, trainer = config.algorithm.name, config.trainer
    return {
        f"{name}.max_num_steps": trainer.steps,
        f"{name}.max_num_epochs": NO_EPOCH_LIMIT,
        f"{name}.seed": trainer.seed,
        f"{name}.val_period": trainer.validate_every or 0,
        f"{name}.val_at_start": False,
        f"{name}.val_at_end": False,
        f"{name}.val_batches": 0,  # all of them
        f"{name}.val_global_batch_size": config.rollout.prompts_per_step,
        f"{name}.val_micro_batch_size": _micro_batch(config),
    }


def _files(config: RunConfig, folder: Path) -> dict[str, Any]:
    every, validates = config.trainer.save_every, config.trainer.validate_every is not None
    keys: dict[str, Any] = {
        "logger.log_dir": str(folder / "nemo_rl_logs"),
        # NeMo-RL's sft.yaml turns on what needs an account and a network.
        **{f"logger.{tracker}_enabled": False for tracker in _TRACKERS},
        "logger.wandb.name": folder.name,
        "logger.swanlab.name": folder.name,
        "logger.mlflow.run_name": folder.name,
        "checkpointing.enabled": every is not None,
        "checkpointing.checkpoint_dir": str(folder / "checkpoints"),
        # The best by validation where there is any, else the newest.
        "checkpointing.metric_name": _METRICS[config.algorithm.name] if validates else None,
    }
    return keys | ({"checkpointing.save_period": every} if every is not None else {})


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
