"""A NeMo-RL checkpoint to Hugging Face's format, by NeMo-RL's own converters. Converts nothing.

Says which of the checkout's `examples/converters` fits a checkpoint, and how it is called. Refuses
by name what none of them reads.
"""

import re
import sys
from pathlib import Path

import yaml

from rlbridge.errors import ConfigError
from rlbridge.hookspecs import Export
from rlbridge_nemo_rl import versions

_STEP = re.compile(r"step_(\d+)")
# What tells a sampler where to stop: NeMo-RL's converters write the config and the tokenizer only.
_GENERATION = "generation_config.json"
_AUTOMODEL = "3rdparty/Automodel-workspace/Automodel/tools"


def export_of(checkpoint: Path, output: Path) -> Export:
    """What converts `checkpoint`, to be run in NeMo-RL's environment.

    Args:
        checkpoint: a run's folder, its `checkpoints`, or one `step_N` in it; of several the
            newest is taken.
        output: the folder to make.

    Raises:
        ConfigError: there is no checkpoint, or none that a converter reads; the message says
            what can be done with it.
    """
    step = newest(checkpoint)
    weights = step / "policy" / "weights"
    policy = _policy_of(step)
    converters = versions.checkout() / "examples" / "converters"
    megatron = sorted(weights.glob("iter_*"))
    if megatron:
        script = converters / "convert_megatron_to_hf.py"
        kind = ["--megatron-ckpt-path", str(megatron[-1])]
    else:
        _refuse(weights, policy)
        script, kind = converters / "convert_dcp_to_hf.py", ["--dcp-ckpt-path", str(weights)]
    config = ["--config", str(step / "config.yaml"), "--hf-ckpt-path", str(output)]
    generation = Path(policy) / _GENERATION
    return Export(
        command=[sys.executable, str(script), *config, *kind],
        beside=(generation,) if generation.is_file() else (),
    )


def newest(checkpoint: Path) -> Path:
    """The `step_N` folder meant by a path.

    Raises:
        ConfigError: there is none, or it is not whole.
    """
    roots = (checkpoint, checkpoint / "checkpoints")
    found = [path for root in roots if root.is_dir() for path in root.iterdir()]
    steps = {int(m[1]): path for path in found if (m := _STEP.fullmatch(path.name))}
    step = steps[max(steps)] if steps else checkpoint
    if not (step / "policy" / "weights").is_dir() or not (step / "config.yaml").is_file():
        raise ConfigError(
            f"{checkpoint}: no NeMo-RL checkpoint here; name a run's folder or a step_N that holds "
            "config.yaml and policy/weights"
        )
    return step


def _policy_of(step: Path) -> str:
    """The name or folder of the model that the run began with."""
    path = step / "config.yaml"
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["policy"]["model_name"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no config of NeMo-RL's: no policy.model_name") from error


def _refuse(weights: Path, policy: str) -> None:
    consolidated = [path.parent for path in weights.rglob("consolidated*/config.json")]
    if consolidated:
        raise ConfigError(f"{consolidated[0]} is in Hugging Face's format already; use it as it is")
    if any(weights.rglob("adapter_model*")):
        raise ConfigError(
            f"{weights} holds a LoRA adapter in PEFT's format: load it with peft beside {policy}, "
            f"or merge the two with NeMo-RL's {_AUTOMODEL}/merge_lora.py"
        )
    if any((folder / ".metadata").is_file() for folder in (weights, weights / "model")):
        return
    if any(weights.rglob("shard-*.safetensors")):
        raise ConfigError(
            f"{weights / 'model'} holds Automodel's safetensors shards, which no converter of "
            "NeMo-RL's reads (`rlbridge run` sets checkpointing.model_save_format=torch_save). "
            "Automodel's tool joins them: uv run --extra automodel python "
            f"{_AUTOMODEL}/offline_hf_consolidation.py --model-name {policy} --input-dir "
            f"{weights / 'model'} --output-dir FOLDER; then copy {weights.parent / 'tokenizer'}/* "
            "into FOLDER"
        )
    raise ConfigError(
        f"{weights} holds no weights that NeMo-RL's converters read (DCP's .metadata or Megatron's "
        "iter_N); was the save cut short?"
    )
