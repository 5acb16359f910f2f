"""The client for code that isn't async: a loop of its own on a thread of its own.

Safe where a loop is running already (a Ray actor, a notebook), after a fork (the child gets a
thread and connections of its own) and at exit (closed without warnings).
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar
from weakref import WeakSet

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import Reward
from rlbridge.errors import ContractError
from rlbridge.gym.client import GymClient, OnDone
from rlbridge.gym.stats import Stats

T = TypeVar("T")
_CLOSE_TIMEOUT_S = 5.0


class _Thread:
    """An event loop that runs on a daemon thread, with one client in it."""

    def __init__(self, config: GymConfig) -> None:
        self.pid = os.getpid()
        self.client = GymClient(config)
        self.loop = _new_loop()
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="rlbridge-gym", daemon=True
        )
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise ContractError("a callback of the client can't call it; use the async client")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: nothing goes on behind the caller's back
            raise

    def close(self) -> None:
        if self.pid != os.getpid() or self.loop.is_closed():
            return
        closing = asyncio.run_coroutine_threadsafe(self.client.aclose(), self.loop)
        try:
            closing.result(_CLOSE_TIMEOUT_S)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_CLOSE_TIMEOUT_S)
            self.loop.close()


class SyncGymClient:
    """`GymClient` without `await`; from any thread, any number at once.

    Blocks the calling thread. Inside a running loop that thread is the loop's: prefer the async
    client there, or call this by `asyncio.to_thread`.
    """

    _all: ClassVar[WeakSet["SyncGymClient"]] = WeakSet()
    _shared: ClassVar[dict[tuple[int, str, str], "SyncGymClient"]] = {}
    _shared_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: GymConfig | None = None, **fields: Any) -> None:
        """Take a config or its fields, as `GymClient` does."""
        self.config = GymClient(config, **fields).config
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        self._closed = False
        self._all.add(self)

    @classmethod
    def shared(cls, config: GymConfig) -> "SyncGymClient":
        """The one client of this process for `config`; closed at exit."""
        secrets = {name: value.get_secret_value() for name, value in config.headers.items()}
        key = (os.getpid(), config.model_dump_json(), repr(secrets))  # a dump hides its secrets
        with cls._shared_lock:
            client = cls._shared.get(key)
            if client is None or client._closed:
                client = cls._shared[key] = cls(config)
            return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[GymConfig]]:
        """Pickles as its config."""
        return type(self), (self.config,)

    @property
    def stats(self) -> Stats:
        """Counters of this process."""
        return self._running().client.stats

    def check_alive(self) -> None:
        """See `GymClient.check_alive`."""
        thread = self._running()
        thread.run(thread.client.check_alive())

    def verify(self, row: Mapping[str, Any], response: object) -> Reward:
        """See `GymClient.verify`."""
        thread = self._running()
        return thread.run(thread.client.verify(row, response))

    def verify_batch(
        self,
        pairs: Iterable[tuple[Mapping[str, Any], object]],
        *,
        on_done: OnDone | None = None,
    ) -> list[Reward]:
        """See `GymClient.verify_batch`; `on_done` is called on the client's thread."""
        thread = self._running()
        return thread.run(thread.client.verify_batch(pairs, on_done=on_done))

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._closed = True
        atexit.unregister(self.close)
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()

    def _running(self) -> _Thread:
        with self._lock:
            if self._closed:
                raise ContractError("this SyncGymClient is closed; make a new one")
            thread = self._thread
            if thread is None or thread.pid != os.getpid():  # threads don't survive a fork
                thread = self._thread = _Thread(self.config)
                atexit.register(self.close)
            return thread


def _new_loop() -> asyncio.AbstractEventLoop:
    """Uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _fresh_locks() -> None:
    """After a fork: a lock that another thread held would stay locked for ever."""
    SyncGymClient._shared_lock = threading.Lock()
    for client in list(SyncGymClient._all):
        client._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_locks)
