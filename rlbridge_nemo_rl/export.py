"""A NeMo-RL checkpoint to Hugging Face's format, by NeMo-RL's own converters. Converts nothing.

Says which of the checkout's `examples/converters` fits a checkpoint, and how it is called.
"""

import re
import sys
from pathlib import Path

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl import versions

_STEP = re.compile(r"step_(\d+)")


def export_command(checkpoint: Path, output: Path) -> list[str]:
    """The command that converts `checkpoint`, to be run in NeMo-RL's environment.

    Args:
        checkpoint: a run's folder, its `checkpoints`, or one `step_N` in it; of several the
            newest is taken.
        output: the folder to make.

    Raises:
        ConfigError: there is no checkpoint, it is in Hugging Face's format already, or the
            output exists.
    """
    step = newest(checkpoint)
    weights = step / "policy" / "weights"
    if output.exists():
        raise ConfigError(f"{output} exists already; name a new folder")
    consolidated = [path.parent for path in weights.rglob("consolidated*/config.json")]
    if consolidated:
        raise ConfigError(f"{consolidated[0]} is in Hugging Face's format already; use it as it is")
    converters = versions.checkout() / "examples" / "converters"
    config = ["--config", str(step / "config.yaml"), "--hf-ckpt-path", str(output)]
    megatron = sorted(weights.glob("iter_*"))
    if megatron:
        script = converters / "convert_megatron_to_hf.py"
        kind = ["--megatron-ckpt-path", str(megatron[-1])]
    else:
        script, kind = converters / "convert_dcp_to_hf.py", ["--dcp-ckpt-path", str(weights)]
    return [sys.executable, str(script), *config, *kind]


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
