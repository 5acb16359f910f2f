"""Ready configs beside the data, for NeMo-RL v0.7.0 and verl 0.9.1. Whole `data` sections.

Each builds on the framework's own example config and says in its head how it is launched. It
names the data by absolute path and sets what the data decides; sizes and devices stay the
framework's. A model that nobody named is `???`, which both frameworks refuse by name.
"""

from pathlib import Path
from typing import Any

import yaml

from rlbridge.transforms.pipeline import Job
from rlbridge.transforms.writing import named_beside, stem_of, write_text

Config = dict[str, Any]

# In a clone, PWD is its root; elsewhere NEMO_RL_DIR says where the clone is.
_CLONE = "${oc.env:NEMO_RL_DIR,${oc.env:PWD}}"
_MISSING = "???"


def write_configs(job: Job, rows: int, model: str | None) -> list[Path]:
    """Write the configs that fit a job's output, as `<stem>.nemo_rl.yaml` and `<stem>.verl.yaml`.

    Args:
        job: the finished job.
        rows: records in its training file; a batch may not hold more.
        model: the policy, a name or a path; None leaves it to be filled in.

    Returns:
        What was written. NeMo-RL reads plain JSON lines (and Parquet for some forms) only, verl
        Parquet only, except for Gym rows; a packed file gets no config.
    """
    train = job.output.resolve()
    held_out = named_beside(train, "validation") if job.selection.validation else None
    form = str(job.options["format"])
    made = []
    for framework, build in (("nemo_rl", _nemo_rl), ("verl", _verl)):
        built = build(job.name, form, train, held_out, model, rows)
        if built is None:
            continue
        launch, config = built
        path = train.with_name(f"{stem_of(train)}.{framework}.yaml")
        head = (
            f"# Made by `rlbridge transform {job.name}`. Launch:\n#   {launch.format(path=path)}\n"
        )
        write_text(path, head + yaml.safe_dump(config, sort_keys=False, width=100))
        made.append(path)
    return made


def _nemo_rl(
    name: str, form: str, train: Path, held_out: Path | None, model: str | None, rows: int
) -> tuple[str, Config] | None:
    dataset = _NEMO_RL_DATASETS.get((name, form))
    if dataset is None or train.suffix != ".jsonl":
        return None
    base, script = f"examples/configs/{_NEMO_RL_BASES[name]}.yaml", f"examples/run_{name}.py"
    if form == "gym":
        base = "examples/nemo_gym/grpo_qwen3_30ba3b_instruct.yaml"
        script = "examples/nemo_gym/run_grpo_nemo_gym.py"
    config: Config = {
        "defaults": f"{_CLONE}/{base}",
        # "default": the tokenizer's own chat template, in place of sft.yaml's, which has no tools.
        "policy": {"model_name": model or _MISSING,
                   "tokenizer": {"name": "${policy.model_name}", "chat_template": "default"}},
        "data": {
            "_override_": True,
            "max_input_seq_length": "${policy.max_total_sequence_length}",
            "shuffle": True,
            "num_workers": 1,
            # sft.yaml names its loggers after `data.train.dataset_name`.
            "train": {"dataset_name": dataset["dataset_name"], "data_path": str(train)},
            "validation": {"data_path": str(held_out)} if held_out else None,
            "default": dict(dataset),
        },
        "checkpointing": {"checkpoint_dir": f"results/{stem_of(train)}"},
    }  # fmt: skip
    if name == "grpo":
        config["data"]["use_multiple_dataloader"] = False
        config["grpo"] = {"num_prompts_per_step": min(32, _batch(rows))}
    elif name == "sft":
        # Asked for, and without meaning to that dataset: the template decides.
        config["data"] |= {"add_bos": False, "add_eos": False, "add_generation_prompt": False}
    if held_out is None:
        unvalidated = {"val_period": 0, "val_at_start": False, "val_at_end": False}
        config[name] = config.get(name, {}) | unvalidated
        config["checkpointing"]["metric_name"] = None
    run = f"uv run --with rlbridge {script}" if name == "sft" else f"uv run {script}"
    return f"{run} --config {{path}}   # in a clone of NeMo-RL v0.7.0", config


def _verl(
    name: str, form: str, train: Path, held_out: Path | None, model: str | None, rows: int
) -> tuple[str, Config] | None:
    launch = f"--config-path={train.parent} --config-name={stem_of(train)}.verl"
    if (name, form, train.suffix) == ("sft", "openai", ".parquet"):
        config = _verl_sft(train, held_out, model, rows)
        return f"torchrun --nproc_per_node=1 -m verl.trainer.sft_trainer {launch}", config
    if (name, form, train.suffix) in (("grpo", "gym", ".jsonl"), ("grpo", "verl", ".parquet")):
        config = _verl_grpo(form, train, held_out, model, rows)
        return f"GYM_URL=http://127.0.0.1:8000 python -m verl.trainer.main_ppo {launch}", config
    return None


def _verl_sft(train: Path, held_out: Path | None, model: str | None, rows: int) -> Config:
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["sft_trainer_engine", "_self_"],
        "data": {
            "train_files": str(train),
            "val_files": str(held_out) if held_out else None,
            "train_batch_size": _batch(rows),
        },
        "model": {"path": model or _MISSING},
        "trainer": {"test_freq": "after_each_epoch" if held_out else -1},
    }


def _verl_grpo(
    form: str, train: Path, held_out: Path | None, model: str | None, rows: int
) -> Config:
    data: Config = {
        "train_files": str(train),
        # verl always loads validation files; without any of our own it gets the training file.
        "val_files": str(held_out or train),
        "train_batch_size": _batch(rows),
        "return_raw_chat": True,
    }
    if form == "gym":
        data["custom_cls"] = {"path": "pkg://rlbridge_verl", "name": "NeMoGymDataset"}
    config: Config = {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "data": data,
        "algorithm": {"adv_estimator": "grpo"},
        "critic": {"enable": False},
        "actor_rollout_ref": {
            "model": {"path": model or _MISSING},
            "actor": {"use_dynamic_bsz": True, "ppo_mini_batch_size": _batch(rows)},
            "rollout": {"name": "vllm", "n": 8},
        },
        "reward": {
            "reward_manager": {
                "source": "importlib",
                "name": "NeMoGymReward",
                "module": {"path": "pkg://rlbridge_verl"},
            },
            "nemo_gym": {"url": "${oc.env:GYM_URL}"},
        },
    }
    if held_out is None:
        config["trainer"] = {"test_freq": -1, "val_before_train": False}
    return config


def _batch(rows: int) -> int:
    """The largest power of two that is no more than the rows, and 256 at most."""
    return int(min(256, 2 ** (max(rows, 1).bit_length() - 1)))


_NEMO_RL_BASES = {"grpo": "grpo_math_1B", "sft": "sft", "dpo": "dpo"}
_NO_PROMPTS = {"prompt_file": None, "system_prompt_file": None}
_CONVERSATIONS = "rlbridge_nemo_rl.offline_dataset.ConversationDataset"
_NEMO_RL_DATASETS: dict[tuple[str, str], Config] = {
    ("grpo", "simple"): {
        "dataset_name": "ResponseDataset",
        "input_key": "input",
        # What the environment verifies against: the ground truth, not the policy's old answer.
        "output_key": "ground_truth",
        "processor": "math_hf_data_processor",
        "env_name": "math",
        **_NO_PROMPTS,
    },
    ("grpo", "gym"): {
        "dataset_name": "NemoGymDataset",
        "processor": "nemo_gym_data_processor",
        "env_name": "nemo_gym",
        **_NO_PROMPTS,
    },
    # Renders a row once, as the policy's template does, and knows what of it was sampled.
    ("sft", "openai"): {"dataset_name": _CONVERSATIONS, **_NO_PROMPTS},
    ("sft", "simple"): {"dataset_name": _CONVERSATIONS, **_NO_PROMPTS},
    ("dpo", "simple"): {
        "dataset_name": "BinaryPreferenceDataset",
        "prompt_key": "prompt",
        "chosen_key": "chosen",
        "rejected_key": "rejected",
        **_NO_PROMPTS,
    },
    ("dpo", "preference"): {"dataset_name": "PreferenceDataset", **_NO_PROMPTS},
}
