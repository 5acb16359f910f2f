"""One call that makes rlbridge known to NeMo-RL, in the process that launches training.

It fills NeMo-RL's registries of environments, their Python environments and data processors, and
puts `validity` around the functions through which rollouts and advantages pass in
`nemo_rl.algorithms.grpo`. NeMo-RL, its development head included, has no public hook there:
estimators are chosen from a fixed list, `valid_mask` is always ones, and metadata of a finished
sample never reaches the batch. Only names of modules are replaced, no class is changed, and a
NeMo-RL without these names is refused.
"""

import contextlib
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl import agent_figures, versions
from rlbridge_nemo_rl.agent_servers import AgentServers
from rlbridge_nemo_rl.all_sequences import AllSequences, collect
from rlbridge_nemo_rl.gym_gateway import GymGateway
from rlbridge_nemo_rl.processor import PROCESSOR, process_row
from rlbridge_nemo_rl.sequences import EVERY_SEQUENCE
from rlbridge_nemo_rl.validity import (
    VALID,
    InvalidShare,
    ValidAdvantages,
    correct_figures,
    settle,
)

ENVIRONMENT = "rlbridge_gym"
"""The environment's name in NeMo-RL's YAML: `data.default.env_name` and `env.rlbridge_gym`."""
ENVIRONMENT_CLASS = "rlbridge_nemo_rl.environment.OnThisNode"

# `total_reward/mean` and, of each agent, `<agent>/reward/mean`.
_OF_REWARDS = re.compile(r"^total_reward/|/reward/[a-z]+$")
_GYM_ACTOR = "nemo_rl.environments.nemo_gym.NemoGym"
_ESTIMATOR = "_create_advantage_estimator"
_AGGREGATION = "aggregate_rollout_metrics"


def register(
    *,
    max_invalid_share: float = 0.5,
    invalid_window_steps: int = 3,
    around_rollout: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    gateway: GymGateway | AgentServers | None = None,
    sequences: AllSequences | None = None,
) -> None:
    """Make `rlbridge_gym` known to NeMo-RL. Call it before `setup_response_data`; twice is once.

    Args:
        max_invalid_share: stop training (`TooFewRewardsError`) when more than this share of the
            rewards of the last steps is invalid.
        invalid_window_steps: how many steps that share is taken over.
        around_rollout: entered around each rollout of this process, to watch it.
        gateway: stands between Gym's agents and NeMo-RL's server on NeMo-RL's own Gym path:
            a `GymGateway` where NeMo-RL starts them, `AgentServers` where they run already. None
            leaves them to each other.
        sequences: trains all of a rollout's sequences behind that gateway; its `policy` goes to
            `grpo_train`. None trains one a rollout (`sequences.representative`).

    Raises:
        ConfigError: `sequences` without a gateway.
        PluginError: this NeMo-RL lacks a function that rewards pass through.
    """
    if sequences is not None and gateway is None:
        raise ConfigError("register: sequences are those that a gateway captures; give it one")
    versions.check()
    from nemo_rl.data.processors import PROCESSOR_REGISTRY, register_processor
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
    from nemo_rl.environments.utils import ENV_REGISTRY, register_env

    if ENVIRONMENT not in ENV_REGISTRY:
        register_env(ENVIRONMENT, ENVIRONMENT_CLASS)
    ACTOR_ENVIRONMENT_REGISTRY[ENVIRONMENT_CLASS] = PY_EXECUTABLES.SYSTEM
    if PROCESSOR not in PROCESSOR_REGISTRY:
        register_processor(PROCESSOR, process_row)
    for name in ("GymDataset", "GymAgentDataset"):
        versions.name_dataset(f"rlbridge_nemo_rl.{name}")
    if isinstance(gateway, AgentServers):  # no Gym of its own, so no environment for it
        ACTOR_ENVIRONMENT_REGISTRY[_GYM_ACTOR] = PY_EXECUTABLES.SYSTEM
    share = InvalidShare(max_invalid_share, invalid_window_steps)
    mask_missing_rewards(share, around_rollout, gateway, sequences)
    _put_tolerant_gym(gateway, sequences)


def mask_missing_rewards(
    share: InvalidShare,
    around_rollout: Callable[[], AbstractContextManager[None]],
    gateway: GymGateway | AgentServers | None = None,
    sequences: AllSequences | None = None,
) -> None:
    """Put `settle` behind NeMo-RL's rollouts and `ValidAdvantages` around its estimators."""
    grpo = importlib.import_module("nemo_rl.algorithms.grpo")
    for name in versions.rollouts():
        setattr(grpo, name, _settled(_plain(getattr(grpo, name)), around_rollout))
    name = versions.gym_rollout()
    original = _plain(getattr(grpo, name))
    rollout = original if gateway is None else gateway.around(original)
    setattr(grpo, name, _around(original, _settled(rollout, around_rollout)))
    if hasattr(grpo, _AGGREGATION):  # not in 0.6, which has no Gym path of ours
        original = _plain(getattr(grpo, _AGGREGATION))
        setattr(grpo, _AGGREGATION, _around(original, agent_figures.summed(original)))
    setattr(grpo, _ESTIMATOR, _estimating(_plain(getattr(grpo, _ESTIMATOR)), share, sequences))


def _put_tolerant_gym(
    gateway: GymGateway | AgentServers | None, sequences: AllSequences | None
) -> None:
    """Let NeMo-RL make our actor for its own Gym path, in the same Python environment."""
    from rlbridge_nemo_rl.gym_agents import TolerantGym

    actor: Any = TolerantGym
    if gateway is not None:
        actor = gateway.actor().told(**{EVERY_SEQUENCE: sequences is not None})
    for module in versions.gym_actor_modules():
        setattr(module, "NemoGym", actor)  # noqa: B010 # a module's name, unknown to types


def _plain(function: Any) -> Any:
    """NeMo-RL's own function, also where ours already stands around it."""
    return getattr(function, "__rlbridge_original__", function)


def _around(original: Any, replacement: Any) -> Any:
    functools.update_wrapper(replacement, original)
    replacement.__rlbridge_original__ = original
    return replacement


def _settled(original: Any, around: Callable[[], AbstractContextManager[None]]) -> Any:
    def rollout(*args: Any, **kwargs: Any) -> Any:
        with around():
            result = original(*args, **kwargs)
        # A pair of batch and metrics, or, on the Gym path, an object that holds both.
        if isinstance(result, tuple):
            tokenizer = inspect.signature(original).bind(*args, **kwargs).arguments["tokenizer"]
            correct_figures(result[1], settle(result[0], tokenizer.eos_token_id))
        elif not bool(settle(collect(result.final_batch))[VALID].any()):
            drop_rewards(result.rollout_metrics)
        return result

    return _around(original, rollout)


def drop_rewards(metrics: dict[str, Any]) -> None:
    """Take NeMo-RL's figures of rewards away where no rollout has one: they are of fillers."""
    for name in [name for name in metrics if _OF_REWARDS.search(name)]:
        del metrics[name]


def _estimating(original: Any, share: InvalidShare, sequences: AllSequences | None) -> Any:
    def create(*args: Any, **kwargs: Any) -> Any:
        estimator = ValidAdvantages(original(*args, **kwargs), share)
        return estimator if sequences is None else sequences.estimator(estimator)

    return _around(original, create)
