"""What NeMo-RL logs, kept as JSON lines, and our environments' own figures logged with it.

Stands before NeMo-RL's `Logger`, which `grpo_train` and its like take as an argument. Refuses
nothing; a figure that is no finite number is left out of the line.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlbridge import jsonl

# DPO's validation is logged by the name of its data, of which a run config has one.
_KEPT = ("train", "validation", "validation-default", "performance", "timing/train")
_LAST = "timing/train"  # logged at the end of each step


class Record:
    """A logger that writes a line a step and passes everything on.

    Args:
        logger: NeMo-RL's own.
        path: gets `{"step": n, "data": {"train/reward": ...}}`.
        at_step_end: called with the step; returns figures to log with it.
    """

    def __init__(
        self,
        logger: Any,
        path: Path,
        at_step_end: Callable[[int], Mapping[str, float]] = lambda _: {},
    ) -> None:
        self._logger = logger
        self._path = path
        self._at_step_end = at_step_end
        self._data: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int, prefix: str | None = "", **kwargs: Any
    ) -> None:
        """As NeMo-RL's `Logger.log_metrics`."""
        if prefix == _LAST:
            ours = self._at_step_end(step)
            if ours:
                self._logger.log_metrics(dict(ours), step, prefix="train")
                self._keep("train", ours)
        self._logger.log_metrics(metrics, step, prefix=prefix, **kwargs)
        if prefix in _KEPT:
            self._keep(prefix, metrics)
        if prefix == _LAST:
            jsonl.append(self._path, {"step": step, "data": self._data})
            self._data = {}

    def _keep(self, prefix: str, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            number = _number(value)
            if number is not None:
                self._data[f"{prefix}/{name}"] = number


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # an array of several
        return None
    return number if math.isfinite(number) else None
