"""GRPO as NeMo-RL's `examples/run_grpo.py` does it, in its order, with our environment in it.

Registered before the data are set up; prompts that are too long are refused, and the environments
are told each step, for which NeMo-RL has no place.
"""

import functools
from collections.abc import Mapping
from typing import Any

from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.backend import METRICS
from rlbridge_nemo_rl.prompt_check import check_prompts
from rlbridge_nemo_rl.record import Record
from rlbridge_nemo_rl.stall import StallWatch
from rlbridge_nemo_rl.training import Training, tokenizer_of

_METRICS_TIMEOUT_S = 10.0


def train(config: Any, run: Training) -> None:
    """Train by GRPO to the end.

    Raises:
        RunError: the run stopped early; NeMo-RL's last checkpoint stays.
    """
    from nemo_rl.algorithms import grpo
    from nemo_rl.data.utils import setup_response_data

    from rlbridge_nemo_rl.registration import register

    tokenizer = tokenizer_of(config)
    _configure_generation(config, tokenizer)
    watch = StallWatch(run.folder / "rewards", float(run.ours["stall_timeout_s"]))
    register(
        max_invalid_share=float(run.ours["max_invalid_share"]),
        invalid_window_steps=int(run.ours["invalid_window_steps"]),
        around_rollout=watch.rollout,
    )
    dataset, val_dataset, task_to_env, val_task_to_env = setup_response_data(
        tokenizer, versions.section(config, "data"), versions.section(config, "env")
    )
    warning = check_prompts(dataset, val_dataset)
    if warning:
        run.warn(warning)
    made = versions.parts(grpo.setup(config, tokenizer, dataset, val_dataset))
    run.note("workers_ready")
    environments = list({id(env): env for env in task_to_env.values()}.values())
    next_step = int(versions.value(made.save_state, "total_steps", 0)) + 1
    begin_step(environments, next_step)
    record = Record(made.logger, run.folder / METRICS, functools.partial(end_step, environments))
    arguments = (
        made.policy, made.policy_generation, made.dataloader, made.val_dataloader, tokenizer,
        made.loss_fn, task_to_env, val_task_to_env, record, made.checkpointer,
        made.save_state, made.master_config,
    )  # fmt: skip
    run.note("training")
    asynchronous = versions.value(versions.section(config, "grpo"), "async_grpo")
    with watch.training():
        if versions.value(asynchronous or {}, "enabled"):
            age = versions.value(asynchronous, "max_trajectory_age_steps", 1)
            extras = versions.known(grpo.async_grpo_train, made.extras)
            with watch.rollout():  # its rollouts go on all the time, in another process
                grpo.async_grpo_train(*arguments, max_trajectory_age_steps=age, **extras)
        else:
            grpo.grpo_train(*arguments)


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
