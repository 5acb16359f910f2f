"""What a collection has come to so far: counts, the mean reward, the pace. No I/O."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rlbridge.rollouts.outcome import Outcome


class Tally:
    """Counts rollouts as they are kept.

    Args:
        total: how many the run is to have.
        before: how many it had when it began.
        clock: seconds that only grow.

    Attributes:
        done: rollouts with a row, earlier runs' included.
        failures: of this run, by class; those that failed for good.
        retries: rollouts of this run that were tried again.
        tokens: sampled in this run.
        untraced: rollouts of this run without the token fields of every call.
    """

    def __init__(
        self, total: int, before: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = total
        self.before = before
        self.done = before
        self.failures: Counter[str] = Counter()
        self.retries = 0
        self.tokens = 0
        self.untraced = 0
        self._clock = clock
        self._began = clock()
        self._reward_sum = 0.0
        self._rewarded = 0

    def count(self, outcome: Outcome) -> None:
        """Count a rollout that was kept."""
        self.tokens += outcome.tokens
        if outcome.failure is not None:
            self.failures[outcome.failure.failure] += 1
            return
        self.done += 1
        self.untraced += not outcome.traced
        if outcome.reward is not None:
            self._reward_sum += outcome.reward
            self._rewarded += 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run began."""
        return self._clock() - self._began

    @property
    def failed(self) -> int:
        """Rollouts of this run that failed for good."""
        return self.failures.total()

    @property
    def reward_mean(self) -> float | None:
        """Over the valid rewards of this run; None without any."""
        return self._reward_sum / self._rewarded if self._rewarded else None

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens a second in this run."""
        return self.tokens / max(self.elapsed_s, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at this run's pace; None while nobody can say."""
        finished = self.done - self.before + self.failed
        left = self.total - self.before - finished
        return self.elapsed_s / finished * left if finished else None

    def summary(self) -> dict[str, Any]:
        """The run in figures, for `--json` and the last line."""
        mean = self.reward_mean
        return {
            "total": self.total,
            "done": self.done,
            "done_before": self.before,
            "failed": dict(self.failures.most_common()),
            "retries": self.retries,
            "reward_mean": None if mean is None else round(mean, 6),
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "without_token_fields": self.untraced,
            "seconds": round(self.elapsed_s, 3),
        }
