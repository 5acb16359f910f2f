"""GRPO as NeMo-RL's `examples/run_grpo.py` does it, in its order, with our environment in it.

Or with Gym's agents in its place, see `agent_training`.

Registered before the data are set up; prompts that are too long are refused, and the environments
are told each step, for which NeMo-RL has no place.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rlbridge_nemo_rl import agent_training, versions
from rlbridge_nemo_rl.agent_servers import AgentServers
from rlbridge_nemo_rl.all_sequences import AllSequences
from rlbridge_nemo_rl.async_training import LoopWatch, hand_over_weights, train_async
from rlbridge_nemo_rl.backend import METRICS
from rlbridge_nemo_rl.epochs import Epochs
from rlbridge_nemo_rl.gym_gateway import GymGateway
from rlbridge_nemo_rl.prompt_check import check_prompts
from rlbridge_nemo_rl.record import Record
from rlbridge_nemo_rl.stall import StallWatch
from rlbridge_nemo_rl.steps import Steps
from rlbridge_nemo_rl.training import STOPPED_ON_PURPOSE, Training, tokenizer_of


def train(config: Any, run: Training) -> None:
    """Train by GRPO to the end.

    Raises:
        RunError: the run stopped early; NeMo-RL's last checkpoint stays.
    """
    tokenizer = tokenizer_of(config)
    _configure_generation(config, tokenizer)
    if not agent_training.by_agents(config):
        _train(config, run, tokenizer)
        return
    agents = run.ours.get("agents") or {}
    gateway = agent_training.gateway_of(config, tokenizer, agents, run.folder)
    try:
        gateway.start()  # a port that is taken shows now
        _train(config, run, tokenizer, gateway)
    finally:
        gateway.stop()


def _train(
    config: Any, run: Training, tokenizer: Any, gateway: GymGateway | AgentServers | None = None
) -> None:
    """Train, with Gym's agents behind `gateway` if there is one, else by our environment."""
    from nemo_rl.algorithms import grpo

    hosts: list[Any] = []  # environments, once there are any
    watch = _stall_watch(run, hosts)
    sequences = agent_training.sequences_of(config, run) if gateway is not None else None
    _register(run, watch, gateway, sequences)
    dataset, val_dataset, task_to_env, val_task_to_env = _data(config, run, tokenizer, gateway)
    made = versions.parts(grpo.setup(config, tokenizer, dataset, val_dataset))
    run.note("workers_ready")
    if gateway is not None:  # made by `setup`, not with the data
        task_to_env = val_task_to_env = agent_training.environments_of(made.nemo_gym)
    hosts += [*task_to_env.values(), *(val_task_to_env or {}).values()]
    grpo_section = versions.section(config, "grpo")
    is_async = bool(versions.value(versions.value(grpo_section, "async_grpo", {}), "enabled"))
    last = int(versions.value(grpo_section, "max_num_steps"))

    def ended(step: int) -> None:
        watch.progressed()
        if step >= last:  # NeMo-RL ends its workers before it returns
            run.note("ending")

    # Async GRPO keeps its step where the other loop keeps the step in an epoch.
    done = versions.value(made.save_state, "current_step" if is_async else "total_steps", 0)
    steps = Steps(hosts, int(done), ended)
    record = Record(made.logger, run.folder / METRICS, steps.end)
    begun = run.folder / "collecting"
    loader = Epochs(made.dataloader, begun) if is_async else made.dataloader
    policy = made.policy if sequences is None else sequences.policy(made.policy)
    arguments = (
        policy, made.policy_generation, loader, made.val_dataloader, tokenizer,
        made.loss_fn, task_to_env, val_task_to_env, record, made.checkpointer,
        made.save_state, made.master_config,
    )  # fmt: skip
    run.note("training")
    ending = agent_training.ending(made.nemo_gym)
    with ending, watch.training(), versions.finishing(made.checkpointer):
        if is_async:
            hand_over_weights(made)
            served, refitting = _served(gateway, made, steps.done)
            overheard = LoopWatch(watch, begun, lambda: run.note("ending"), refitting)
            with served:
                train_async(config, arguments, made.extras, lambda: steps.done, overheard)
        else:
            grpo.grpo_train(*arguments)


def _served(
    gateway: GymGateway | AgentServers | None, made: versions.Parts, step: int
) -> tuple[AbstractContextManager[None], Callable[[], AbstractContextManager[None]]]:
    """What is open around async training, and around each change of the engines' weights."""
    if gateway is None:
        return contextlib.nullcontext(), contextlib.nullcontext
    return agent_training.served(gateway, made, step), gateway.refitting


def _register(
    run: Training,
    watch: StallWatch,
    gateway: GymGateway | AgentServers | None,
    sequences: AllSequences | None,
) -> None:
    from rlbridge_nemo_rl.registration import register

    register(
        max_invalid_share=float(run.ours["max_invalid_share"]),
        invalid_window_steps=int(run.ours["invalid_window_steps"]),
        around_rollout=watch.rollout,
        gateway=gateway,
        sequences=sequences,
    )


def _data(
    config: Any, run: Training, tokenizer: Any, gateway: GymGateway | AgentServers | None
) -> Any:
    """Datasets and environments by task, of training and of validation."""
    from nemo_rl.data.utils import setup_response_data

    if gateway is not None:
        one_agent = isinstance(gateway, AgentServers)
        return *agent_training.data_of(config, tokenizer, one_agent=one_agent), {}, {}
    made = setup_response_data(
        tokenizer, versions.section(config, "data"), versions.section(config, "env")
    )
    warning = check_prompts(made[0], made[1])
    if warning:
        run.warn(warning)
    return made


def _stall_watch(run: Training, environments: list[Any]) -> StallWatch:
    """A watch that ends environments first: threads that wait for them hear no interruption."""

    def release() -> None:
        import ray

        run.note("ending")
        for env in environments:
            ray.kill(env)

    def abandon(message: str) -> None:
        run.note("stopped", reason=f"StalledError: {message}")
        print(f"StalledError: {message}", file=sys.stderr, flush=True)
        os._exit(STOPPED_ON_PURPOSE)

    timeout_s = float(run.ours["stall_timeout_s"])
    return StallWatch(run.folder / "rewards", timeout_s, release, abandon)


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
