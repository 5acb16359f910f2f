"""One replica of a pool: its health, its weights, its counts. Looks after itself in a task."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import Delta, EngineCall, EngineInfo, Generation
from rlbridge.engines.http_engine import Health
from rlbridge.engines.versions import UNSET, Version
from rlbridge.errors import ConfigError, EngineError

_LOG: Final = logging.getLogger(__name__)
_LATE_LOOKS: Final = 3


class Replica(Protocol):
    """An engine that a pool can look after."""

    async def ask(self) -> EngineInfo:
        """What it is, without waiting for it to come up; `EngineError` if it isn't."""
        ...

    async def generate(self, call: EngineCall) -> tuple[Generation, ...]:
        """As `Engine.generate`."""
        ...

    def stream(self, call: EngineCall) -> AsyncIterator[Delta]:
        """As `Engine.stream`."""
        ...

    async def health(self) -> Health:
        """Look whether it is up; `EngineError` if not."""
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False where that can't be had."""
        ...

    def use_version(self, version: Version) -> None:
        """Say which weights it has now, for replies that don't."""
        ...

    def forget(self) -> None:
        """Ask again what it is."""
        ...

    async def aclose(self) -> None:
        """As `Engine.aclose`."""
        ...


class Owner(Protocol):
    """What a member asks of its pool."""

    @property
    def published(self) -> Version:
        """The version that the trainer says is current."""
        ...

    def accepts(self, info: EngineInfo) -> None:
        """Raises `ConfigError` for a replica that serves something else."""
        ...

    def changed(self) -> None:
        """A member came up, went down or has other weights."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One replica, for metrics.

    Attributes:
        url: its base URL.
        requests: calls it was given.
        failures: calls that ended with an error of its own.
        outstanding: calls it is at.
        up: whether it answers.
        admitted: whether it is given calls: up, and at the current weights.
        version: its weights; None where nobody knows.
        resets: how often its prefix cache was reset.
    """

    url: str
    requests: int
    failures: int
    outstanding: int
    up: bool
    admitted: bool
    version: Version
    resets: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool, for metrics.

    Attributes:
        requests: calls it was given.
        failovers: attempts after the first because one failed.
        aborts: attempts after the first because the engine aborted one.
        current_version: the weights that replicas must serve; None where nobody knows.
        replicas: each of them.
    """

    requests: int
    failovers: int
    aborts: int
    current_version: Version
    replicas: tuple[ReplicaStats, ...]


class Member:
    """A replica and what its pool knows of it.

    Attributes:
        url: its base URL.
        up: whether it answers.
        version: its weights; None where nobody knows.
        error: why it isn't up.
        outstanding: calls it is at.
        requests: calls it was given.
    """

    def __init__(self, url: str, engine: Replica, config: PolicyConfig, owner: Owner) -> None:
        self.url = url
        self.up = False
        self.version: Version = None
        self.error: Exception | None = None
        self.outstanding = 0
        self.requests = 0
        self._failures = self._resets = self._late = 0
        self._engine = engine
        self._config = config
        self._owner = owner
        self._asked = self._tells = self._replies_tell = False
        self._replied: Version = None
        self._poke = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._watching = asyncio.create_task(self._watch())

    async def generate(self, call: EngineCall) -> tuple[Generation, ...]:
        """The answers, counted."""
        with self._counted():
            return await self._engine.generate(call)

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """The pieces, counted."""
        with self._counted():
            pieces = self._engine.stream(call)
            try:
                async for delta in pieces:
                    yield delta
            finally:
                if isinstance(pieces, AsyncGenerator):
                    await pieces.aclose()

    def stats(self, *, admitted: bool) -> ReplicaStats:
        """How it is now."""
        return ReplicaStats(
            self.url,
            self.requests,
            self._failures,
            self.outstanding,
            self.up,
            admitted,
            self.version,
            self._resets,
        )

    def look_again(self) -> None:
        """Look at its health now."""
        self._poke.set()

    def replied(self, version: Version) -> None:
        """A reply may tell of new weights before the next look does, or alone.

        Replies of the other wires only say what they were labelled with.
        """
        if self._replies_tell and version not in (None, UNSET, self.version):
            self._replied = version
            self.look_again()

    def is_down(self, error: Exception) -> None:
        """It doesn't answer; another process may come up in its place, so ask anew what it is."""
        if self.up:
            _LOG.warning("replica %s is down: %s", self.url, error)
        self.up, self.error, self._asked = False, error, False
        self.version = self._replied = None
        self._engine.forget()
        self._owner.changed()

    async def aclose(self, *, at_once: bool) -> None:
        """Give its connections back, after its calls are done unless `at_once`."""
        self._watching.cancel()
        if not at_once:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self._config.call_timeout_s)
        await self._engine.aclose()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.requests += 1
        self.outstanding += 1
        self._idle.clear()
        try:
            yield
        except EngineError as error:
            self._failures += error.retryable
            raise
        finally:
            self.outstanding -= 1
            if not self.outstanding:
                self._idle.set()

    async def _watch(self) -> None:
        backoff_s = self._config.backoff_initial_s
        while True:
            wait_s = self._config.health_interval_s
            self._poke.clear()
            try:
                await self._look()
            except (EngineError, ConfigError) as error:
                if not self._is_busy(error):
                    self.is_down(error)
                    wait_s, backoff_s = backoff_s, min(backoff_s * 2, self._config.backoff_max_s)
            except Exception as error:
                self.is_down(error)  # so that whoever waits for it is told
                raise
            else:
                self._late, backoff_s = 0, self._config.backoff_initial_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poke.wait(), wait_s)

    def _is_busy(self, error: Exception) -> bool:
        """Whether it may just be slow: a server under load answers /health late, and isn't down."""
        if not (self.up and isinstance(error, EngineError) and error.code == "timeout"):
            return False
        self._late += 1
        return self._late < _LATE_LOOKS

    async def _look(self) -> None:
        if not self._asked:
            info = await self._engine.ask()
            self._owner.accepts(info)
            self._asked, self._replies_tell = True, info.wire == "generate"
        told = (await self._engine.health()).version
        version = self._meant(self._replied if told is None else told)
        if version != self.version:
            await self._has_other_weights(version)
        if not self.up:
            self.up, self.error = True, None
            self._owner.changed()

    def _meant(self, told: Version) -> Version:
        """Its weights, given what it tells of them.

        One that tells nothing, or was never told a version itself, is at those that the trainer
        publishes. One that once told a version and is unset again came up anew, with old weights.
        """
        published = self._owner.published
        self._tells = self._tells or told not in (None, UNSET)
        if published is None:
            return told
        return published if not self._tells or str(told) == str(published) else told

    async def _has_other_weights(self, version: Version) -> None:
        """Note them before the cache is cleared: the salt already keeps the old ones out."""
        known, self.version = self.version, version
        self._engine.use_version(version)
        self._owner.changed()
        if known is not None and await self._engine.reset_prefix_cache():
            self._resets += 1
