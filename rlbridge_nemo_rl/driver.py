"""Trains with NeMo-RL: `python -m rlbridge_nemo_rl.driver --config native.yaml`.

Does what NeMo-RL's `examples/run_grpo.py`, `run_sft.py` and `run_dpo.py` do, in their order, and
adds what they have no place for: rlbridge's environment is registered before the data are set up,
missing rewards are masked, a stalled or rewardless run stops, and each step leaves a line in the
run's folder. The config is one that `compose` made, already whole.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from rlbridge.errors import RLBridgeError, RunError
from rlbridge.launch import processes
from rlbridge_nemo_rl import grpo_training, offline_training, versions
from rlbridge_nemo_rl.lending import lent_source
from rlbridge_nemo_rl.training import STOPPED_ON_PURPOSE, Training

_ALGORITHMS = {
    "grpo": grpo_training.train,
    "sft": offline_training.train_sft,
    "dpo": offline_training.train_dpo,
}


def train(container: dict[str, Any], run: Training) -> None:
    """Run the algorithm to its end.

    Args:
        container: the whole config as plain data.
        run: the same config's run.

    Raises:
        RunError: the run stopped early; NeMo-RL's last checkpoint stays.
    """
    algorithm = run.ours["algorithm"]
    config = versions.validated(algorithm, container)
    from nemo_rl.distributed.virtual_cluster import init_ray
    from nemo_rl.utils.logger import get_next_experiment_dir

    logger = versions.section(config, "logger")
    logger["log_dir"] = get_next_experiment_dir(logger["log_dir"])
    run.note("imported")
    os.environ["PYTHONPATH"] = lent_source(run.folder)
    init_ray()
    run.note("ray_ready")
    _ALGORITHMS[algorithm](config, run)


def main(arguments: list[str]) -> int:
    """Train. Returns the exit status: 0, or 3 for a stop on purpose."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name if __spec__ else 'driver'}")
    parser.add_argument("--config", type=Path, required=True, help="a config that rlbridge made")
    path = parser.parse_args(arguments).config
    processes.end_with_launcher()
    container = yaml.safe_load(path.read_text(encoding="utf-8"))
    run = Training(container)
    run.note("started")
    try:
        train(container, run)
    except RunError as error:
        run.note("stopped", reason=f"{type(error).__name__}: {error}")
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return STOPPED_ON_PURPOSE
    except RLBridgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        run.note("ending")
    run.note("finished")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
