"""Metrics over rollouts as /aggregate_metrics answers them (nemo-gym 0.4.0). Pure.

Statistics by task and over all: mean, max, min, median and standard deviation (n - 1) of every
number in the verify answers and in their responses' usage.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rlbridge.contracts.wire import AGENT_REF, RESPONSE, REWARD, ROLLOUT_INDEX, TASK_INDEX

Results = Sequence[Mapping[str, Any]]

_STATISTICS: Final[dict[str, Callable[[list[float]], float]]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "median": statistics.median,
}
_SAMPLE: Final = {AGENT_REF: {"name": "agent"}}


def aggregate_metrics(results: Results) -> dict[str, Any]:
    """Group level, agent level and headline metrics of verify answers.

    Raises:
        KeyError: an answer lacks `_ng_task_index` or `_ng_rollout_index`.
        ValueError: two answers have the same indices.
    """
    seen: set[tuple[int, int]] = set()
    tasks: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        key = (result[TASK_INDEX], result[ROLLOUT_INDEX])
        if key in seen:
            raise ValueError(f"Duplicate result row for rollout key {key}")
        seen.add(key)
        tasks.setdefault(key[0], []).append(result)
    agent = _describe(results)
    return {
        "group_level_metrics": [_group(task, tasks[task]) for task in sorted(tasks)],
        "agent_metrics": agent,
        "key_metrics": {name: agent[name] for name in agent if name.startswith("mean/")},
    }


def _group(task: int, results: Results) -> dict[str, Any]:
    ordered = sorted(results, key=lambda result: result[ROLLOUT_INDEX])
    return {
        TASK_INDEX: task,
        **_describe(results),
        "sample": _SAMPLE,
        "num_rollouts": len(results),
        "expected_num_rollouts": len(results),
        "missing_num_rollouts": 0,
        "reward_profile_completion_pct": 100.0,
        "rollout_infos": [_info(result) for result in ordered],
    }


def _info(result: Mapping[str, Any]) -> dict[str, Any]:
    task, rollout = result[TASK_INDEX], result[ROLLOUT_INDEX]
    info: dict[str, Any] = {
        "rollout_id": f"{task}:{rollout}",
        TASK_INDEX: task,
        ROLLOUT_INDEX: rollout,
    }
    if REWARD in result:
        info[REWARD] = result[REWARD]
    return {**info, **_numbers(_usage(result)), **_numbers(result)}


def _describe(results: Results) -> dict[str, float]:
    columns: dict[str, list[float]] = {}
    for result in results:
        for name, value in _numbers({**result, **_usage(result)}).items():
            columns.setdefault(name, []).append(float(value))
    metrics = {
        f"{statistic}/{name}": float(compute(values))
        for statistic, compute in _STATISTICS.items()
        for name, values in columns.items()
    }
    return metrics | _deviations(columns, len(results))


def _deviations(columns: Mapping[str, list[float]], count: int) -> dict[str, float]:
    """Of a column with a single value there is none, unless that holds for every column."""
    spread = {name: values for name, values in columns.items() if len(values) > 1}
    if spread:
        return {f"std/{name}": statistics.stdev(values) for name, values in spread.items()}
    return {f"std/{name}": 0.0 for name, values in columns.items() if len(values) == count}


def _numbers(data: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of `data`, truth values as 0 and 1, indices left out."""
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in data.items()
        if isinstance(value, int | float) and name not in (TASK_INDEX, ROLLOUT_INDEX)
    }


def _usage(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return (result.get(RESPONSE) or {}).get("usage") or {}
