"""Trains with NeMo-RL: `python -m rlbridge_nemo_rl.driver --config native.yaml`.

Does what NeMo-RL's `examples/run_grpo.py`, `run_sft.py` and `run_dpo.py` do, in their order, and
adds what they have no place for: rlbridge's environment is registered before the data are set up,
missing rewards are masked, a stalled or rewardless run stops, and each step leaves a line in the
run's folder. The config is one that `compose` made, already whole.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlbridge import jsonl
from rlbridge.errors import ConfigError, RLBridgeError, RunError
from rlbridge.launch import processes
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.backend import METRICS
from rlbridge_nemo_rl.lending import lent_source
from rlbridge_nemo_rl.processor import INDEX, OVERLONG, SPLIT
from rlbridge_nemo_rl.record import Record
from rlbridge_nemo_rl.stall import StallWatch

STARTED = time.time()
STOPPED_ON_PURPOSE = 3
_METRICS_TIMEOUT_S = 10.0


class Driver:
    """One training run in this process.

    Args:
        container: the whole config as plain data; its `rlbridge` section is ours.
    """

    def __init__(self, container: dict[str, Any]) -> None:
        self._ours = dict(container["rlbridge"])
        self._run_dir = Path(self._ours["run_dir"])
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._container = container

    def note(self, event: str, **details: Any) -> None:
        """Append one event to `events.jsonl`, for whoever watches."""
        line = {"event": event, "after_s": round(time.time() - STARTED, 3), **details}
        jsonl.append(self._run_dir / "events.jsonl", line)

    def train(self) -> None:
        """Run the algorithm to its end.

        Raises:
            RunError: the run stopped early; NeMo-RL's last checkpoint stays.
        """
        algorithm = self._ours["algorithm"]
        config = versions.validated(algorithm, self._container)
        from nemo_rl.distributed.virtual_cluster import init_ray
        from nemo_rl.utils.logger import get_next_experiment_dir

        logger = versions.section(config, "logger")
        logger["log_dir"] = get_next_experiment_dir(logger["log_dir"])
        self.note("imported")
        os.environ["PYTHONPATH"] = lent_source(self._run_dir)
        init_ray()
        self.note("ray_ready")
        {"grpo": self._grpo, "sft": self._sft, "dpo": self._dpo}[algorithm](config)

    def _grpo(self, config: Any) -> None:
        from nemo_rl.algorithms import grpo
        from nemo_rl.data.utils import setup_response_data

        from rlbridge_nemo_rl.registration import register

        tokenizer = _tokenizer(config)
        _configure_generation(config, tokenizer)
        watch = StallWatch(self._run_dir / "rewards", float(self._ours["stall_timeout_s"]))
        register(
            max_invalid_share=float(self._ours["max_invalid_share"]),
            invalid_window_steps=int(self._ours["invalid_window_steps"]),
            around_rollout=watch.rollout,
        )
        dataset, val_dataset, task_to_env, val_task_to_env = setup_response_data(
            tokenizer, versions.section(config, "data"), versions.section(config, "env")
        )
        refuse_overlong(dataset)
        made = versions.parts(grpo.setup(config, tokenizer, dataset, val_dataset))
        self.note("workers_ready")
        environments = list({id(env): env for env in task_to_env.values()}.values())
        next_step = int(versions.value(made.save_state, "total_steps", 0)) + 1
        begin_step(environments, next_step)
        record = Record(
            made.logger, self._run_dir / METRICS, functools.partial(end_step, environments)
        )
        arguments = (
            made.policy, made.policy_generation, made.dataloader, made.val_dataloader, tokenizer,
            made.loss_fn, task_to_env, val_task_to_env, record, made.checkpointer,
            made.save_state, made.master_config,
        )  # fmt: skip
        self.note("training")
        asynchronous = versions.value(versions.section(config, "grpo"), "async_grpo")
        with watch.training():
            if versions.value(asynchronous or {}, "enabled"):
                age = versions.value(asynchronous, "max_trajectory_age_steps", 1)
                extras = versions.known(grpo.async_grpo_train, made.extras)
                with watch.rollout():  # its rollouts go on all the time, in another process
                    grpo.async_grpo_train(*arguments, max_trajectory_age_steps=age, **extras)
            else:
                grpo.grpo_train(*arguments)

    def _sft(self, config: Any) -> None:
        from nemo_rl.algorithms import sft

        example = _example("run_sft")
        tokenizer = _tokenizer(config)
        data = example.setup_data(tokenizer, versions.section(config, "data"))
        self._offline(sft.setup(config, tokenizer, *data), tokenizer, sft.sft_train)

    def _dpo(self, config: Any) -> None:
        from nemo_rl.algorithms import dpo
        from nemo_rl.data.utils import setup_preference_data

        tokenizer = _tokenizer(config)
        data = setup_preference_data(tokenizer, versions.section(config, "data"))
        self._offline(dpo.setup(config, tokenizer, *data), tokenizer, dpo.dpo_train)

    def _offline(self, made: tuple[Any, ...], tokenizer: Any, train: Any) -> None:
        policy, _, dataloader, val_dataloader, loss_fn, logger, checkpointer, state, config = made
        self.note("training")
        record = Record(logger, self._run_dir / METRICS)
        train(
            policy, dataloader, val_dataloader, tokenizer, loss_fn, config, record, checkpointer,
            state,
        )  # fmt: skip


def refuse_overlong(dataset: Any) -> None:
    """Refuse rows whose prompt is too long: NeMo-RL would sample for them, and train on nothing.

    Raises:
        ConfigError: naming the first one and how many there are.
    """
    found = [
        item["extra_env_info"]
        for item in (dataset[index] for index in range(len(dataset)))
        if OVERLONG in item["extra_env_info"]
    ]
    if found:
        raise ConfigError(
            f"data: {len(found)} of {len(dataset)} prompts are longer than data.max_prompt_tokens, "
            f"the first in row {found[0][INDEX]} of the {found[0][SPLIT]} file; raise it or drop "
            "these rows"
        )


def begin_step(environments: list[Any], step: int) -> None:
    """Tell our environments the step; others have no ear for it."""
    for env in environments:
        if hasattr(env, "set_step"):
            env.set_step.remote(step)


def end_step(environments: list[Any], step: int) -> Mapping[str, float]:
    """Figures of the step that ended, and the next one announced."""
    import ray

    ours = [env for env in environments if hasattr(env, "set_step")]
    found: dict[str, float] = {}
    for _, metrics in ray.get(
        [env.global_post_process_and_metrics.remote({}) for env in ours],
        timeout=_METRICS_TIMEOUT_S,
    ):
        found |= metrics
    begin_step(ours, step + 1)
    return found


def _tokenizer(config: Any) -> Any:
    from nemo_rl.algorithms.utils import get_tokenizer

    return get_tokenizer(versions.section(config, "policy")["tokenizer"])


def _configure_generation(config: Any, tokenizer: Any) -> None:
    from nemo_rl.models.generation import configure_generation_config

    policy = versions.section(config, "policy")
    flags = {
        "has_refit_draft_weights": bool((policy.get("draft") or {}).get("enabled")),
        "trains_mtp": bool((policy.get("megatron_cfg") or {}).get("mtp_num_layers")),
    }
    policy["generation"] = configure_generation_config(
        policy["generation"], tokenizer, **versions.known(configure_generation_config, flags)
    )


def _example(name: str) -> Any:
    """A module of the checkout's examples, which hold code that isn't in the package."""
    import importlib.util

    path = versions.checkout() / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"nemo_rl_examples_{name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"this NeMo-RL checkout has no {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str]) -> int:
    """Train. Returns the exit status: 0, or 3 for a stop on purpose."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name if __spec__ else 'driver'}")
    parser.add_argument("--config", type=Path, required=True, help="a config that rlbridge made")
    path = parser.parse_args(arguments).config
    processes.end_with_launcher()
    driver = Driver(yaml.safe_load(path.read_text(encoding="utf-8")))
    driver.note("started")
    try:
        driver.train()
    except RunError as error:
        driver.note("stopped", reason=f"{type(error).__name__}: {error}")
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return STOPPED_ON_PURPOSE
    except RLBridgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        driver.note("ending")
    driver.note("finished")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
