"""The spread of rewards in words, and what a threshold would keep. For messages and reports."""

import numpy as np
import numpy.typing as npt

_FEW = 8


class Spread:
    """Rewards, or gaps between rewards, sorted.

    Args:
        values: float64 [n], finite, n >= 1.
    """

    def __init__(self, values: npt.NDArray[np.float64]) -> None:
        self.values = np.sort(values)

    def kept(self, threshold: float) -> int:
        """How many are at least `threshold`."""
        return len(self.values) - int(np.searchsorted(self.values, threshold, side="left"))

    def words(self) -> str:
        """The distinct values with their counts, or quantiles where there are many."""
        distinct, counts = np.unique(self.values, return_counts=True)
        if len(distinct) <= _FEW:
            pairs = zip(distinct.tolist(), counts.tolist(), strict=True)
            return ", ".join(f"{value:g} ({count} times)" for value, count in pairs)
        low, q1, middle, q3, high = np.quantile(self.values, (0, 0.25, 0.5, 0.75, 1)).tolist()
        return (
            f"from {low:.4g} to {high:.4g}, quartiles {q1:.4g}, {middle:.4g} and {q3:.4g}, "
            f"mean {self.values.mean():.4g}"
        )

    def thresholds(self) -> list[float]:
        """A few thresholds worth trying, highest first."""
        distinct = np.unique(self.values)
        if len(distinct) > _FEW:
            distinct = np.unique(np.quantile(self.values, (0, 0.25, 0.5, 0.75, 0.9, 0.99)))
        return [float(f"{value:.6g}") for value in reversed(distinct.tolist())]

    def advice(self, ceiling: float | None = None, option: str = "--reward-threshold") -> str:
        """Which threshold would keep how many."""
        fits = [t for t in self.thresholds() if ceiling is None or t <= ceiling]
        if option == "--min-gap":  # equal rewards prefer nothing
            fits = [t for t in fits if t > 0]
        if not fits:
            return f"--max-reward {ceiling:g} is below every reward; raise it"
        kept = (f"{option} {t:g} keeps {self._between(t, ceiling)}" for t in fits[:_FEW])
        return "; ".join(kept)

    def _between(self, low: float, high: float | None) -> int:
        if high is None:
            return self.kept(low)
        above = len(self.values) - int(np.searchsorted(self.values, high, side="right"))
        return self.kept(low) - above
