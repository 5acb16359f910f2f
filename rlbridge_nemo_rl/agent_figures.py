"""NeMo-RL's figures of Gym agents' rollouts, right where async GRPO puts groups of them together.

Each prompt's group brings figures of its own there, and NeMo-RL takes their mean: of our counts,
too, and of the numbers that stand where nobody has a reward. Refuses to tell a mean of those.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_COUNTS = "gym/"
_AGENT = "agent_ref"


def summed(original: Callable[[dict[str, list[Any]]], dict[str, Any]]) -> Callable[..., Any]:
    """NeMo-RL's aggregation of figures, which adds our counts up instead."""

    def aggregated(per_group_metrics: dict[str, list[Any]]) -> dict[str, Any]:
        ours = {key for key in per_group_metrics if key.startswith(_COUNTS)}
        rest = {key: found for key, found in per_group_metrics.items() if key not in ours}
        return original(rest) | {key: sum(per_group_metrics[key]) for key in ours}

    return aggregated


def of_valid(
    rewards: torch.Tensor, valid: torch.Tensor, batch: Mapping[str, Any] | None
) -> dict[str, float]:
    """NeMo-RL's figures of rewards on its Gym path, over valid ones; NaN where there are none.

    Args:
        rewards: float [batch].
        valid: bool [batch].
        batch: rows of another path have no `agent_ref`, and give no figures.
    """
    if batch is None or _AGENT not in batch:
        return {}
    known = {"total_reward": rewards[valid].tolist()}
    for row, agent in enumerate(batch[_AGENT]):
        of_agent = known.setdefault(f"{agent['name']}/reward", [])
        if bool(valid[row]):
            of_agent.append(float(rewards[row]))
    return {
        f"{name}/{figure}": value
        for name, values in known.items()
        for figure, value in _figures(values).items()
    }


def _figures(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("mean", "max", "min", "median", "stddev"), math.nan)
    return {
        "mean": statistics.fmean(values),
        "max": max(values),
        "min": min(values),
        "median": statistics.median(values),
        "stddev": statistics.stdev(values) if len(values) > 1 else math.nan,
    }
