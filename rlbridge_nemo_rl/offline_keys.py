"""What a run config becomes for SFT and DPO on NeMo-RL: data made by `rlbridge transform`.

No rollouts and no Gym here: sections that speak of them are refused once they are set. A step
takes `rollout.prompts_per_step` rows.
"""

from pathlib import Path
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.rows import read_rows
from rlbridge.run_config import RunConfig
from rlbridge_nemo_rl.keys import BASE_MICRO_BATCH, NO_EPOCH_LIMIT, largest_divisor

_NO_PROMPTS = {"prompt_file": None, "system_prompt_file": None}
# NeMo-RL's datasets by the fields of a row.
_DATASETS: dict[str, tuple[tuple[frozenset[str], dict[str, Any]], ...]] = {
    "sft": (
        (
            frozenset({"messages"}),
            {
                "dataset_name": "openai_format",
                # Otherwise arguments that differ between rows are filled up with nulls.
                "use_preserving_dataset": True,
                "processor": "sft_processor",
            },
        ),
        (
            frozenset({"input", "output"}),
            {"dataset_name": "ResponseDataset", "processor": "sft_processor"},
        ),
    ),
    "dpo": (
        (
            frozenset({"prompt", "chosen", "rejected"}),
            {"dataset_name": "BinaryPreferenceDataset"},
        ),
        (frozenset({"context", "completions"}), {"dataset_name": "PreferenceDataset"}),
    ),
}
_METRICS = {"sft": "val:val_loss", "dpo": "val:validation-default_loss"}
_MEANINGLESS = {
    "gym": None,
    "agent": None,
    "rollout": {"prompts_per_step", "max_response_tokens"},
    "algorithm": {"name", "learning_rate", "kl_coef"},
}


def offline_keys(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """Dotted NeMo-RL keys of an SFT or DPO run.

    Raises:
        ConfigError: a key is set that means nothing here, or rows have no known form.
    """
    name, trainer, folder = config.algorithm.name, config.trainer, run_dir.resolve()
    refuse(config)
    gpus = trainer.gpus_per_node * trainer.nodes
    rows = config.rollout.prompts_per_step
    if rows % gpus:
        raise ConfigError(f"rollout.prompts_per_step: {rows} rows can't be split over {gpus} GPUs")
    path = str(config.policy.path.resolve())
    keys: dict[str, Any] = {
        "policy.model_name": path,
        "policy.tokenizer.name": path,
        "policy.tokenizer.chat_template": "default",  # the policy's own
        "policy.train_global_batch_size": rows,
        "policy.train_micro_batch_size": largest_divisor(rows // gpus, BASE_MICRO_BATCH),
        "policy.max_total_sequence_length": config.data.max_prompt_tokens
        + config.rollout.max_response_tokens,
        "policy.optimizer.kwargs.lr": config.algorithm.learning_rate,
        "data": _data(config),
        f"{name}.max_num_steps": trainer.steps,
        f"{name}.max_num_epochs": NO_EPOCH_LIMIT,
        f"{name}.seed": trainer.seed,
        f"{name}.val_period": trainer.validate_every or 0,
        f"{name}.val_at_start": False,
        f"{name}.val_at_end": False,
        "cluster.gpus_per_node": trainer.gpus_per_node,
        "cluster.num_nodes": trainer.nodes,
        "logger.log_dir": str(folder / "nemo_rl_logs"),
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
    if config.trainer.device == "cpu":
        raise ConfigError("trainer.device=cpu: NeMo-RL trains on GPUs only")
    if name == "dpo" and config.algorithm.kl_coef <= 0:
        raise ConfigError("algorithm.kl_coef: DPO needs one above 0 (its beta), 0.1 say")
    if config.trainer.validate_every is not None and config.data.validation is None:
        raise ConfigError("trainer.validate_every: there is nothing to validate on")


def _data(config: RunConfig) -> dict[str, Any]:
    name = config.algorithm.name
    train, validation = config.data.train.resolve(), config.data.validation
    dataset = _dataset_of(name, train)  # in each section: base YAMLs refer to train.dataset_name
    section: dict[str, Any] = {
        "max_input_seq_length": "${policy.max_total_sequence_length}",
        "shuffle": config.data.shuffle,
        "num_workers": 1,
        "train": {**dataset, "data_path": str(train)},
        "validation": {**dataset, "data_path": str(validation.resolve())} if validation else None,
        "default": dict(_NO_PROMPTS),
    }
    if name == "sft":
        section |= {"add_bos": True, "add_eos": True, "add_generation_prompt": False}
    return section


def _dataset_of(name: str, path: Path) -> dict[str, Any]:
    where, row = read_rows(path, 1)[0]
    for fields, dataset in _DATASETS[name]:
        if fields <= set(row):
            return dataset
    forms = " or ".join("{" + ", ".join(sorted(fields)) + "}" for fields, _ in _DATASETS[name])
    raise ConfigError(
        f"{where}: a row for {name} has {forms}, this one {orjson.dumps(sorted(row)).decode()}; "
        f"make one with `rlbridge transform {name}`"
    )
