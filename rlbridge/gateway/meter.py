"""What the gateway did, for Prometheus (extra `metrics`). Plain ASGI, a few microseconds a request.

Counts requests by route and status, their durations, and reads the gateway's own counters when
asked. A session's name is never a label: there are too many of them.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from rlbridge.errors import FrameworkMissingError

App = Callable[[Any, Any, Any], Awaitable[None]]

_PREFIX: Final = "rlbridge_gateway_"
_BUCKETS: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 20.0, 60.0, 300.0, 1800.0)
_ROUTES: Final = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/models",
        "/v1/tokenize",
        "/tokenize",
        "/rollout",
        "/run",
        "/generate",
        "/ready",
    }
)
INSTALL: Final = "pip install 'rlbridge[metrics]'"


class Meter:
    """Counts what passes through the apps it wraps.

    Args:
        read: the gateway's counters and gauges by name, read at each scrape.
        collectors: further ones (the Gym client's).

    Raises:
        FrameworkMissingError: prometheus_client isn't installed.
    """

    def __init__(
        self, read: Callable[[], Mapping[str, int]], collectors: Iterable[Any] = ()
    ) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise FrameworkMissingError(
                f"metrics need prometheus_client; install it with `{INSTALL}`", install=INSTALL
            ) from error
        self._library = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            f"{_PREFIX}requests",
            "Requests answered, by route and status.",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = prometheus_client.Histogram(
            f"{_PREFIX}request_seconds",
            "Time to the end of the answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        for collector in (_Counters(read), *collectors):
            self._registry.register(collector)

    def exposition(self) -> tuple[bytes, str]:
        """The metrics as text, and their content type."""
        text: bytes = self._library.generate_latest(self._registry)
        return text, self._library.CONTENT_TYPE_LATEST

    def wrap(self, app: App) -> App:
        """`app`, counted."""

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 500

            async def watched(message: MutableMapping[str, Any]) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            start = time.perf_counter()
            try:
                await app(scope, receive, watched)
            finally:
                route = route_of(scope["path"])
                self._requests.labels(route, status).inc()
                self._seconds.labels(route).observe(time.perf_counter() - start)

        return counted


class _Counters:
    """The gateway's own numbers as a Prometheus collector."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Any]:
        """One family a number."""
        from prometheus_client.core import UnknownMetricFamily

        for name, value in self._read().items():
            yield UnknownMetricFamily(_PREFIX + _word(name), name, value=value)


def _word(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def route_of(path: str) -> str:
    """A path without its session; what nobody serves is one label for all."""
    if path.startswith("/s/"):
        path = "/" + path[3:].partition("/")[2]
    return path if path in _ROUTES else "other"
