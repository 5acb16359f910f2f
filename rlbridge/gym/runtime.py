"""What a client holds while it is open on one event loop.

Clients often have nobody to close them: a framework drops the object that holds one, or it lives
as long as its process. What is still open closes when it is collected, or at exit.
"""

import asyncio
import atexit
import ctypes
import os
import threading
from dataclasses import replace
from time import monotonic
from typing import Final
from weakref import WeakSet, finalize

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import Reward
from rlbridge.gym.caches import Cache, open_cache
from rlbridge.gym.calls import Call, Caller, Reader
from rlbridge.gym.flights import Flights
from rlbridge.gym.replies import Failure, read_reward
from rlbridge.gym.servers import make_servers
from rlbridge.gym.stats import Stats
from rlbridge.gym.transport import Transport
from rlbridge.gym.transports import open_transport

# For a forked child and for the exit to find.
_open: Final[WeakSet["Runtime"]] = WeakSet()
_EXIT_TIMEOUT_S: Final = 2.0


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
        self._flights = Flights[Reward]()
        self._stats = stats
        self._pid = os.getpid()
        self._left_open = finalize(self, _let_go, self.loop, transport)
        self._left_open.atexit = False  # `_close_at_exit` does more, and a forked child nothing
        _open.add(self)

    async def ask(self, call: Call, read: Reader = read_reward) -> Reward:
        """The reward that a fresh request brings, or why it brings none."""
        began = monotonic()
        outcome = await self.caller.call(call, read)
        if type(outcome) is Failure:
            return outcome.invalid(call.attempts, monotonic() - began)
        return outcome  # type: ignore[no-any-return]

    async def once(self, key: bytes, call: Call) -> Reward:
        """The kept reward, that of an equal question under way, or a fresh one."""
        cache = self._cache
        if cache is not None:
            kept = cache.peek(key)
            if kept is None and cache.is_deep:
                kept = await cache.fetch(key)
            if kept is not None:
                self._stats.cache_hits += 1
                return replace(kept, attempts=0, from_cache=True)
        if not self._single_flight:
            reward = await self.ask(call)
        else:
            flights = self._flights
            while flights.busy(key):
                shared = await flights.join(key)
                if shared is not None:
                    self._stats.shared += 1
                    return replace(shared, attempts=0, from_cache=True)
            flights.start(key)
            answer: Reward | None = None
            try:
                reward = answer = await self.ask(call)
            finally:
                flights.land(key, answer)
        if cache is not None and reward.valid:
            cache.put(key, reward)
        return reward

    async def aclose(self) -> None:
        """Close everything, from whichever loop; what another process opened stays as it is."""
        if self._pid != os.getpid():
            return
        if self._left_open.detach() is not None:
            if self.loop is asyncio.get_running_loop():
                await self._transport.aclose()
            else:
                _let_go(self.loop, self._transport)
        if self._cache is not None:
            await self._cache.aclose()

    def abandon(self) -> threading.Event | None:
        """Let go without awaiting; of another process's there is nothing to let go.

        Returns:
            Set once the connections are closed, which another thread's running loop does; None
            if there is nothing to wait for.
        """
        if self._pid != os.getpid() or self._left_open.detach() is None:
            return None
        if self._cache is not None:
            self._cache.abandon()
        return _let_go(self.loop, self._transport)


def open_runtime(config: GymConfig, stats: Stats) -> Runtime:
    """Open on the running loop.

    Raises:
        ConfigError: an optional library is missing, or the cache's file can't be opened.
    """
    return Runtime(config, stats, open_transport(config), open_cache(config))


def _let_go(loop: asyncio.AbstractEventLoop, transport: Transport) -> threading.Event:
    """Close the connections where that is safe: on their loop if it runs, else at once.

    Called by the garbage collector at any point of any thread, so it takes no lock; a cache that
    is collected ends by itself.
    """
    closed = threading.Event()

    def close() -> None:
        transport.abandon()
        closed.set()

    if loop.is_running():
        try:
            loop.call_soon_threadsafe(close)
        except RuntimeError:  # it has closed meanwhile
            close()
    else:
        close()
    return closed


@atexit.register
def _close_at_exit() -> None:
    deadline = monotonic() + _EXIT_TIMEOUT_S
    for closed in [runtime.abandon() for runtime in list(_open)]:
        if closed is not None:
            closed.wait(max(deadline - monotonic(), 0.0))


def _leave_to_parent() -> None:
    """In a forked child: keep what the parent had open, untouched, to the very end.

    Closing it would close the parent's, and letting it be collected warns of a leak: so each
    gets a reference that nobody gives back.
    """
    for runtime in list(_open):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
