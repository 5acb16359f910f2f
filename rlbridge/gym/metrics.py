"""A client's counters as Prometheus metrics or OpenTelemetry instruments; both optional.

Both read `GymClient.stats` when asked, so that a request pays for neither. The one exception:
OpenTelemetry has no histogram to be read, so it is told of every latency, once asked for.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge.gym.client import GymClient
from rlbridge.gym.stats import BUCKETS_S, Histogram, Stats

_INSTALL = "install it with `pip install 'rlbridge[metrics]'`"

# name, help, and what to read as (value of the label, number)
_COUNTERS: tuple[tuple[str, str, str], ...] = (
    (
        "rlbridge_gym_verifies",
        "Verifies by outcome: valid, cancelled or a failure class",
        "outcome",
    ),
    ("rlbridge_gym_attempts", "Requests sent, by route", "route"),
    ("rlbridge_gym_failures", "Attempts without a usable answer, by class", "failure"),
    ("rlbridge_gym_retries", "Attempts after the first of their call", ""),
    ("rlbridge_gym_cache_hits", "Verifies answered from the cache", ""),
    ("rlbridge_gym_shared", "Verifies that shared an equal one's request", ""),
)


def counts(stats: Stats, name: str) -> dict[str, int]:
    """The numbers of one counter of `_COUNTERS` by its label's value."""
    return {
        "rlbridge_gym_verifies": {
            "valid": stats.valid,
            "cancelled": stats.cancelled,
            **{str(kind): count for kind, count in stats.invalid.items()},
        },
        "rlbridge_gym_attempts": dict(stats.attempts),
        "rlbridge_gym_failures": {str(kind): count for kind, count in stats.failures.items()},
        "rlbridge_gym_retries": {"": stats.retries},
        "rlbridge_gym_cache_hits": {"": stats.cache_hits},
        "rlbridge_gym_shared": {"": stats.shared},
    }[name]


class PrometheusCollector:
    """Register it: `REGISTRY.register(PrometheusCollector(gym))`.

    Raises:
        ConfigError: prometheus-client isn't installed.
    """

    def __init__(self, gym: GymClient) -> None:
        try:
            from prometheus_client import core
        except ImportError as error:
            raise ConfigError(f"Prometheus metrics need prometheus-client; {_INSTALL}") from error
        self._core: Any = core
        self._stats = gym.stats

    def collect(self) -> Iterator[Any]:
        """All metric families, as Prometheus's registry asks for them."""
        core, stats = self._core, self._stats
        for name, text, label in _COUNTERS:
            family = core.CounterMetricFamily(name, text, labels=[label] if label else None)
            for value, count in counts(stats, name).items():
                family.add_metric([value] if label else [], count)
            yield family
        yield core.GaugeMetricFamily(
            "rlbridge_gym_in_flight", "Requests that are out now", value=stats.in_flight
        )
        buckets, total = [], 0
        for edge_s, count in zip((*BUCKETS_S, "+Inf"), stats.latency.counts, strict=True):
            total += count
            buckets.append((str(edge_s), total))
        latency = core.HistogramMetricFamily(
            "rlbridge_gym_attempt_seconds", "Seconds an attempt took, answered or not"
        )
        latency.add_metric([], buckets, stats.latency.total_s)
        yield latency


class _ToldHistogram(Histogram):
    """Counts on where another stopped, and tells OpenTelemetry's of each value."""

    __slots__ = ("_told",)

    def __init__(self, so_far: Histogram, instrument: Any) -> None:
        super().__init__()
        self.counts = so_far.counts
        self.total_s = so_far.total_s
        earlier = so_far._told if isinstance(so_far, _ToldHistogram) else ()
        self._told: tuple[Any, ...] = (*earlier, instrument)

    def record(self, seconds: float) -> None:
        """Count one value, in seconds."""
        super().record(seconds)
        for instrument in self._told:
            instrument.record(seconds)


def instrument_opentelemetry(gym: GymClient, meter: Any = None) -> None:
    """Make instruments of the counters, on `meter` or the global one.

    Raises:
        ConfigError: opentelemetry-api isn't installed.
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise ConfigError(f"OpenTelemetry needs opentelemetry-api; {_INSTALL}") from error
    meter = metrics.get_meter("rlbridge.gym") if meter is None else meter

    def observer(name: str, label: str) -> Any:
        def observe(_options: Any) -> Iterable[Any]:
            for value, count in counts(gym.stats, name).items():
                yield metrics.Observation(count, {label: value} if label else {})

        return observe

    for name, text, label in _COUNTERS:
        meter.create_observable_counter(name, [observer(name, label)], description=text)
    meter.create_observable_up_down_counter(
        "rlbridge_gym_in_flight",
        [lambda _options: [metrics.Observation(gym.stats.in_flight)]],
        description="Requests that are out now",
    )
    gym.stats.latency = _ToldHistogram(
        gym.stats.latency,
        meter.create_histogram(
            "rlbridge_gym_attempt_seconds",
            unit="s",
            description="Seconds an attempt took, answered or not",
            explicit_bucket_boundaries_advisory=BUCKETS_S,
        ),
    )
