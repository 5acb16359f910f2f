"""One call that makes rlbridge known to NeMo-RL, in the process that launches training.

It fills NeMo-RL's registries of environments, their Python environments and data processors, and
puts `validity` around the functions through which rollouts and advantages pass in
`nemo_rl.algorithms.grpo`. NeMo-RL 0.5 to 0.7 has no public hook there: estimators are chosen from
a fixed list, `valid_mask` is always ones, and metadata of a finished sample never reaches the
batch. Only names of that one module are replaced, no class is changed, and a NeMo-RL without
these names is refused.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rlbridge.errors import PluginError
from rlbridge_nemo_rl.gym_gateway import ActorBehind, GymGateway
from rlbridge_nemo_rl.processor import PROCESSOR, process_row
from rlbridge_nemo_rl.validity import InvalidShare, ValidAdvantages, settle

ENVIRONMENT = "rlbridge_gym"
"""The environment's name in NeMo-RL's YAML: `data.default.env_name` and `env.rlbridge_gym`."""
ENVIRONMENT_CLASS = "rlbridge_nemo_rl.environment.GymEnvironment"

_ROLLOUTS = ("run_multi_turn_rollout", "run_async_multi_turn_rollout")
_GYM_ROLLOUT = "run_async_nemo_gym_rollout"
_ESTIMATOR = "_create_advantage_estimator"  # since v0.6


def register(
    *,
    max_invalid_share: float = 0.5,
    invalid_window_steps: int = 3,
    around_rollout: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    gateway: GymGateway | None = None,
) -> None:
    """Make `rlbridge_gym` known to NeMo-RL. Call it before `setup_response_data`; twice is once.

    Args:
        max_invalid_share: stop training (`TooFewRewardsError`) when more than this share of the
            rewards of the last steps is invalid.
        invalid_window_steps: how many steps that share is taken over.
        around_rollout: entered around each rollout of this process, to watch it.
        gateway: stands between Gym's agents and NeMo-RL's server on NeMo-RL's own Gym path; None
            leaves them to each other.

    Raises:
        PluginError: this NeMo-RL lacks a function that rewards pass through.
    """
    from nemo_rl.data.processors import PROCESSOR_REGISTRY, register_processor
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
    from nemo_rl.environments.utils import ENV_REGISTRY, register_env

    if ENVIRONMENT not in ENV_REGISTRY:
        register_env(ENVIRONMENT, ENVIRONMENT_CLASS)
    ACTOR_ENVIRONMENT_REGISTRY[ENVIRONMENT_CLASS] = PY_EXECUTABLES.SYSTEM
    if PROCESSOR not in PROCESSOR_REGISTRY:
        register_processor(PROCESSOR, process_row)
    share = InvalidShare(max_invalid_share, invalid_window_steps)
    mask_missing_rewards(share, around_rollout, gateway)
    _put_tolerant_gym(gateway)


def mask_missing_rewards(
    share: InvalidShare,
    around_rollout: Callable[[], AbstractContextManager[None]],
    gateway: GymGateway | None = None,
) -> None:
    """Put `settle` behind NeMo-RL's rollouts and `ValidAdvantages` around its estimators.

    Raises:
        PluginError: this NeMo-RL lacks a function that rewards pass through.
    """
    grpo = importlib.import_module("nemo_rl.algorithms.grpo")
    for name in _ROLLOUTS:
        original = getattr(grpo, name, None)
        if original is None:
            raise PluginError(
                f"this NeMo-RL has no nemo_rl.algorithms.grpo.{name}, so a reward that is missing "
                "could not be masked; rlbridge knows NeMo-RL 0.5 to 0.7"
            )
        setattr(grpo, name, _settled(_plain(original), around_rollout))
    if hasattr(grpo, _GYM_ROLLOUT):
        original = _plain(getattr(grpo, _GYM_ROLLOUT))
        rollout = original if gateway is None else gateway.around(original)
        setattr(grpo, _GYM_ROLLOUT, _around(original, _settled(rollout, around_rollout)))
    if hasattr(grpo, _ESTIMATOR):
        setattr(grpo, _ESTIMATOR, _estimating(_plain(getattr(grpo, _ESTIMATOR)), share))


def _put_tolerant_gym(gateway: GymGateway | None) -> None:
    """Let `setup` make our actor for NeMo-RL's own Gym path, in the same Python environment."""
    grpo = importlib.import_module("nemo_rl.algorithms.grpo")
    if hasattr(grpo, "NemoGym"):
        from rlbridge_nemo_rl.gym_agents import TolerantGym

        actor = TolerantGym if gateway is None else ActorBehind(gateway, TolerantGym)
        setattr(grpo, "NemoGym", actor)  # noqa: B010 # a module's name, unknown to types


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
        # A pair of batch and metrics, or, on the Gym path, an object that holds the batch.
        settle(result[0] if isinstance(result, tuple) else result.final_batch)
        return result

    return _around(original, rollout)


def _estimating(original: Any, share: InvalidShare) -> Any:
    def create(*args: Any, **kwargs: Any) -> Any:
        return ValidAdvantages(original(*args, **kwargs), share)

    return _around(original, create)
