"""What a client counts. Plain integers, so that counting costs nothing worth measuring.

Every verify ends in exactly one of `valid`, `invalid` or `cancelled`, wherever its reward came
from: `verifies == valid + sum(invalid.values()) + cancelled + in_progress`.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts by bucket; `counts[i]` holds values up to `BUCKETS_S[i]`, the last the rest."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self.counts)

    def record(self, seconds: float) -> None:
        """Count one value, in seconds."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds

    def quantile(self, share: float) -> float:
        """Upper edge in seconds of the bucket that holds this share; 0.0 when empty."""
        left = share * self.count
        if left <= 0:
            return 0.0
        for edge_s, count in zip(BUCKETS_S, self.counts, strict=False):
            left -= count
            if left <= 0:
                return edge_s
        return BUCKETS_S[-1]


@dataclass(slots=True)
class Stats:
    """Counters since the client was made.

    Attributes:
        verifies: calls of verify, in sessions too.
        valid: those that ended in a valid reward.
        invalid: those that ended in an invalid one, by failure class.
        cancelled: those whose caller went away.
        attempts: requests sent, by route.
        failures: attempts without a usable answer, by failure class.
        retries: attempts after the first of their call.
        cache_hits: verifies answered from the cache.
        shared: verifies that shared an equal one's request.
        in_flight: requests that are out now.
        latency: seconds an attempt took, answered or not.
    """

    verifies: int = 0
    valid: int = 0
    invalid: Counter[str] = field(default_factory=Counter)
    cancelled: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    cache_hits: int = 0
    shared: int = 0
    in_flight: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def in_progress(self) -> int:
        """Verifies that have not ended yet."""
        return self.verifies - self.valid - sum(self.invalid.values()) - self.cancelled

    def snapshot(self) -> dict[str, Any]:
        """All counters as plain data."""
        return {
            "verifies": self.verifies,
            "valid": self.valid,
            "invalid": dict(self.invalid),
            "cancelled": self.cancelled,
            "in_progress": self.in_progress,
            "attempts": dict(self.attempts),
            "failures": dict(self.failures),
            "retries": self.retries,
            "cache_hits": self.cache_hits,
            "shared": self.shared,
            "in_flight": self.in_flight,
            "latency_p50_s": self.latency.quantile(0.5),
            "latency_p95_s": self.latency.quantile(0.95),
            "latency_total_s": round(self.latency.total_s, 3),
        }
