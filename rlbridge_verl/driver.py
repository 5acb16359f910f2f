"""Trains in this process with verl's V1 trainer: `python -m rlbridge_verl.driver key=value ...`.

Takes the same Hydra overrides as `python -m verl.trainer.main_ppo` and does the same, with three
differences: the trainer runs here instead of in a Ray actor (one process fewer to start), a run
that stops early for want of rewards saves a checkpoint first, and what happens when is appended
to `events.jsonl` in RLBRIDGE_RUN_DIR for whoever watches.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlbridge import jsonl
from rlbridge.errors import ConfigError, RunError
from rlbridge.launch import processes

STARTED = time.time()


def note(event: str, **details: Any) -> None:
    """Append one event, with the seconds since this process started, to `events.jsonl`."""
    folder = os.environ.get("RLBRIDGE_RUN_DIR")
    if folder:
        line = {"event": event, "after_s": round(time.time() - STARTED, 3), **details}
        jsonl.append(Path(folder) / "events.jsonl", line)


def compose(overrides: list[str]) -> Any:
    """Compose verl's config with `overrides` applied and validated by verl itself."""
    import hydra
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", overrides=overrides)
    auto_set_device(config)
    validate_config(
        config=config,
        use_reference_policy=need_reference_policy(config),
        use_critic=need_critic(config),
    )
    return config


def check(config: Any) -> None:
    """What would fail minutes later, or only in every rollout.

    Raises:
        ConfigError: another verl, a reward key of verl 0.7, a wrong key of `reward.nemo_gym`, a
            trl that breaks verl, or a chat template that takes no tool messages.
    """
    from rlbridge_verl.settings import gym_section

    gym_section(config)
    if find_spec("trl") is not None and find_spec("trl.experimental.ppo") is None:
        raise ConfigError(
            f"trl {version('trl')} lacks a class that verl imports from any trl it finds; "
            "pip install 'trl<1.13', or uninstall it"
        )
    rollout = config.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop == "nemo_gym_tools":
        from transformers import AutoTokenizer

        from rlbridge.onpolicy.bridge import Bridge

        tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
        refused = Bridge(tokenizer, **(config.data.get("apply_chat_template_kwargs") or {})).refused
        if "tool" in refused:
            raise ConfigError(
                f"agent.loop=tools: the policy's chat template can't take tool messages: "
                f"{refused['tool']}"
            )


def start_ray(config: Any) -> None:
    """Start (or join) Ray with the run's own settings and verl's environment for workers."""
    import ray
    from omegaconf import OmegaConf
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    if ray.is_initialized():
        return
    runtime_env = get_ppo_ray_runtime_env(config)
    runtime_env.setdefault("env_vars", {})["TRANSFER_QUEUE_ENABLE"] = "1"
    given: Any = OmegaConf.to_container(config.ray_kwargs.get("ray_init", {}), resolve=True)
    merged: Any = OmegaConf.to_container(
        OmegaConf.merge(runtime_env, given.pop("runtime_env", None) or {})
    )
    ray.init(runtime_env=merged, **given)


def train(config: Any) -> None:
    """Run the trainer that `config` names, to its end.

    Raises:
        RunError: the run stopped early; a checkpoint of the last whole step was saved.
    """
    import transfer_queue
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ, get_trainer_cls
    from verl.utils.import_utils import load_class_from_fqn

    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    trainer_class = get_trainer_cls(config.trainer.v1.trainer_mode)
    try:
        with ThreadPoolExecutor(1) as pool:
            # The queue's two processes import while the trainer's do; sync trainers need it only
            # once rollouts start.
            queue = pool.submit(transfer_queue.init, config.transfer_queue)
            trainer = trainer_class(config=config)
            trainer.init()
            queue.result()
        note("workers_ready")
        custom = config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class")
        manager_class = (
            load_class_from_fqn(custom, "AgentLoopManager") if custom else AgentLoopManagerTQ
        )
        manager = manager_class.create(
            config=config,
            llm_client=trainer.get_llm_client(),
            teacher_client=trainer.get_teacher_client(),
            reward_loop_worker_handles=trainer.get_reward_handles(),
        )
        note("training")
        _fit(trainer, manager)
    finally:
        transfer_queue.close()


def _fit(trainer: Any, manager: Any) -> None:
    try:
        trainer.fit(manager)
    except RunError:
        # The step that stopped has not changed the weights: save them as the step before.
        trainer.global_steps -= 1
        if trainer.global_steps > 0:
            trainer._save_checkpoint()
            note("checkpoint_saved", step=trainer.global_steps)
        raise
    finally:
        if getattr(trainer, "logger", None) is not None:
            trainer.logger.finish()


def main(overrides: list[str]) -> int:
    """Compose, start Ray, train. Returns the exit status: 0, or 3 for a stop on purpose."""
    processes.end_with_launcher()
    note("started")
    config = compose(overrides)
    import ray

    try:
        check(config)
        note("imported")
        start_ray(config)
        note("ray_ready")
        train(config)
    except (RunError, ConfigError) as error:
        note("stopped", reason=f"{type(error).__name__}: {error}")
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    finally:
        note("ending")
        ray.shutdown()
    note("finished")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
