"""The servers behind a client: one entry a URL, and which of them to ask next."""

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit, urlunsplit

from rlbridge.config import GymConfig
from rlbridge.gym.breaker import Breaker, State
from rlbridge.gym.limiter import Limiter


class Server:
    """One URL with its limiter and its breaker, for one event loop.

    Attributes:
        url: base URL without a trailing slash.
        shown: the same without credentials, for messages and metrics.
        epoch: how often nobody listened here. A session that was seeded in an earlier epoch
            may have lost its state, for servers keep it in memory.
    """

    __slots__ = ("breaker", "epoch", "limiter", "shown", "url")

    def __init__(self, url: str, config: GymConfig) -> None:
        self.url = url.rstrip("/")
        self.shown = without_credentials(self.url)
        self.limiter = Limiter(config)
        self.breaker = Breaker(config)
        self.epoch = 0

    @property
    def load(self) -> tuple[bool, int]:
        """Sorts servers: those that are up first, then by outstanding calls."""
        limiter = self.limiter
        return self.breaker.state is not State.CLOSED, limiter.in_use + limiter.queued


def make_servers(config: GymConfig) -> list[Server]:
    """One `Server` for each URL of `config`, in order and each once."""
    urls = dict.fromkeys(url.rstrip("/") for url in (config.url, *config.urls))
    return [Server(url, config) for url in urls]


def least_loaded(servers: Sequence[Server], time: Callable[[], float]) -> Server:
    """The server to ask: up and with the fewest calls outstanding, or one whose probe is due."""
    if len(servers) == 1:
        return servers[0]
    for server in servers:
        if server.breaker.failing_since is not None and server.breaker.probe_due(time()):
            return server
    return min(servers, key=lambda server: server.load)


def without_credentials(url: str) -> str:
    """`url` without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
