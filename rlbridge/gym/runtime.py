"""What a client holds while it is open on one event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import Reward, ValidReward
from rlbridge.gym.caches import Cache, open_cache
from rlbridge.gym.calls import Caller
from rlbridge.gym.flights import Flights
from rlbridge.gym.servers import make_servers
from rlbridge.gym.stats import Stats
from rlbridge.gym.transport import Transport, open_transport


class Runtime:
    """A transport, the servers behind it, and what is under way.

    Attributes:
        loop: the event loop all of it belongs to.
        caller: sends calls.
        shares: whether equal verifies are answered together or from the cache.
    """

    def __init__(
        self, config: GymConfig, stats: Stats, transport: Transport, cache: Cache | None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.caller = Caller(config, transport, make_servers(config), stats)
        self.shares = config.deterministic and (config.single_flight or cache is not None)
        self._single_flight = config.single_flight
        self._transport = transport
        self._cache = cache
        self._flights: Flights[Reward] = Flights()
        self._stats = stats

    async def once(self, key: bytes, ask: Callable[[], Awaitable[Reward]]) -> Reward:
        """The kept reward, that of an equal question under way, or a fresh one."""
        cache = self._cache
        if cache is not None:
            kept = await cache.get(key)
            if kept is not None:
                self._stats.cache_hits += 1
                return replace(kept, attempts=0, latency_s=0.0, from_cache=True)
        if not self._single_flight:
            return self._keep(key, await ask())
        reward, shared = await self._flights.share(key, ask)
        if shared:
            self._stats.shared += 1
            return replace(reward, attempts=0, from_cache=True)
        return self._keep(key, reward)

    def _keep(self, key: bytes, reward: Reward) -> Reward:
        if self._cache is not None and isinstance(reward, ValidReward):
            self._cache.put(key, reward)
        return reward

    async def aclose(self) -> None:
        """Close everything, from whichever loop."""
        if self.loop is asyncio.get_running_loop():
            await self._transport.aclose()
        else:
            self._transport.abandon()
        if self._cache is not None:
            await self._cache.aclose()

    def abandon(self) -> None:
        """Let go of a loop that is gone, or of another process's."""
        self._transport.abandon()


def open_runtime(config: GymConfig, stats: Stats) -> Runtime:
    """Open on the running loop.

    Raises:
        ConfigError: an optional library is missing, or the cache's file can't be opened.
    """
    return Runtime(config, stats, open_transport(config), open_cache(config))
