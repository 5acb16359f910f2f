"""Several replicas of one policy as one engine. Never asks one that is down or behind.

Calls of a session stay with a replica while it is well (its prefix cache), others go to the one
with the fewest outstanding. A call that fails in a way that may pass is sent to another replica
from the same tokens: sampling has no side effects, so a call that was half done may be repeated.
"""

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Final

from rlbridge.contracts.rollout import FinishReason
from rlbridge.engines.config import PolicyConfig, check_url
from rlbridge.engines.discovery import Found, Source
from rlbridge.engines.engine import Delta, Engine, EngineCall, EngineInfo, Generation
from rlbridge.engines.member import Member, PoolStats, Replica
from rlbridge.engines.registry import without_nulls
from rlbridge.engines.versions import Version, Versions, is_current
from rlbridge.errors import ConfigError, EngineError

_LOG: Final = logging.getLogger(__name__)
_SESSIONS: Final = 100_000


class ReplicaPool(Engine):
    """The replicas that a source names.

    Args:
        source: where their URLs come from.
        config: deadlines, attempts and patience.
        connect: makes the engine at a URL.
    """

    def __init__(
        self,
        source: Source,
        config: PolicyConfig,
        connect: Callable[[str, PolicyConfig], Replica],
    ) -> None:
        self._source = source
        self._config = config
        self._connect = connect
        self._versions = Versions()
        self._members: dict[str, Member] = {}
        self._homes: OrderedDict[str, str] = OrderedDict()
        self._info: EngineInfo | None = None
        self._trouble: Exception | None = None
        self._news = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._requests = self._failovers = self._aborts = 0

    async def info(self) -> EngineInfo:
        """What the replicas are; waits for the first, until `ready_timeout_s`.

        Raises:
            EngineError: none came up in time.
            ConfigError: none can be used as the config says.
        """
        if self._info is None or not self._able():
            await self._pick("", set(), self._config.ready_timeout_s)
        assert self._info is not None  # noqa: S101 # an able member has said it
        return replace(self._info, policy_version=self._current())

    async def generate(self, call: EngineCall) -> tuple[Generation, ...]:
        """The answers to one call, from whichever replica."""
        try:
            async with asyncio.timeout(self._config.call_timeout_s):
                return await self._generate(call)
        except TimeoutError as error:
            raise EngineError(
                f"no replica answered within {self._config.call_timeout_s:g} s",
                code="timeout",
                retryable=True,
            ) from error

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """The one answer in pieces; repeated elsewhere while no piece was given yet."""
        self._requests += 1
        tried: set[str] = set()
        for attempt in range(1, self._config.max_attempts + 1):
            member = await self._pick(call.session, tried)
            last = attempt == self._config.max_attempts
            given = aborted = False
            try:
                async with contextlib.aclosing(self._pieces(member, call)) as pieces:
                    async for delta in pieces:
                        done = delta.done
                        aborted = done is not None and done.finish is FinishReason.ABORT
                        if aborted and not given and not last:
                            break
                        given = True
                        yield delta
            except EngineError as error:
                self._failed(member, error, tried)
                if given or last or not error.retryable:
                    raise
            else:
                if given:
                    return
            self._count(aborted=aborted)
            await self._pause(attempt, tried)

    async def aclose(self) -> None:
        """Let go of every replica; calls in flight fail."""
        self._closed = True
        if self._following is not None:
            self._following.cancel()
        for url in list(self._members):
            self._drop(url, at_once=True)
        self._tell()
        await asyncio.gather(*self._closing, return_exceptions=True)

    @property
    def stats(self) -> PoolStats:
        """Counts since the start, and how each replica is now."""
        able = {member.url for member in self._able()}
        return PoolStats(
            requests=self._requests,
            failovers=self._failovers,
            aborts=self._aborts,
            current_version=self._current(),
            replicas=tuple(
                member.stats(admitted=member.url in able) for member in self._members.values()
            ),
        )

    async def _generate(self, call: EngineCall) -> tuple[Generation, ...]:
        self._requests += 1
        tried: set[str] = set()
        for attempt in range(1, self._config.max_attempts + 1):
            member = await self._pick(call.session, tried)
            last = attempt == self._config.max_attempts
            aborted = False
            try:
                answers = await member.generate(self._salted(call, member))
            except EngineError as error:
                self._failed(member, error, tried)
                if last or not error.retryable:
                    raise
            else:
                member.replied(answers[-1].policy_version)
                aborted = any(answer.finish is FinishReason.ABORT for answer in answers)
                if last or not aborted:
                    return answers
            self._count(aborted=aborted)
            await self._pause(attempt, tried)
        raise AssertionError  # the last attempt returns or raises

    async def _pieces(self, member: Member, call: EngineCall) -> AsyncGenerator[Delta, None]:
        async with contextlib.aclosing(member.stream(self._salted(call, member))) as pieces:
            async for delta in pieces:
                if delta.done is not None:
                    member.replied(delta.done.policy_version)
                yield delta

    def _salted(self, call: EngineCall, member: Member) -> EngineCall:
        """The call with a salt of the weights: prefixes cached under others are never hit."""
        if member.version is None:
            return call
        return replace(call, cache_salt=f"{call.cache_salt}@{member.version}")

    def _count(self, *, aborted: bool) -> None:
        if aborted:
            self._aborts += 1
        else:
            self._failovers += 1

    def _failed(self, member: Member, error: EngineError, tried: set[str]) -> None:
        tried.add(member.url)
        if error.code == "unreachable":
            member.is_down(error)
        if error.retryable:
            member.look_again()

    async def _pause(self, attempt: int, tried: set[str]) -> None:
        """Wait before the next attempt, unless another replica can take it at once."""
        if any(member.url not in tried for member in self._able()) and tried:
            return
        wait_s = min(
            self._config.backoff_initial_s * 2 ** (attempt - 1), self._config.backoff_max_s
        )
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 # jitter

    async def _pick(self, session: str, tried: set[str], patience_s: float | None = None) -> Member:
        """The replica for a call; waits while none is well and current."""
        self._start()
        limit_s = self._config.patience_s if patience_s is None else patience_s
        if self._info is None:
            limit_s = max(limit_s, self._config.ready_timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not (able := self._able()):
                    if self._closed:
                        raise EngineError("the pool is closed", code="closed")
                    self._check_config()
                    await self._news.wait()
                return self._choose(session, [m for m in able if m.url not in tried] or able)
        raise self._nobody(limit_s)

    def _choose(self, session: str, able: list[Member]) -> Member:
        home = self._homes.get(session) if session else None
        chosen = next((member for member in able if member.url == home), None)
        if chosen is None:
            chosen = min(able, key=lambda member: (member.outstanding, member.requests))
        if session:
            self._homes[session] = chosen.url
            self._homes.move_to_end(session)
            if len(self._homes) > _SESSIONS:
                self._homes.popitem(last=False)
        return chosen

    def _able(self) -> list[Member]:
        current = self._current()
        return [
            member
            for member in self._members.values()
            if member.up and is_current(member.version, current)
        ]

    def _current(self) -> Version:
        return self._versions.current(m.version for m in self._members.values() if m.up)

    def _check_config(self) -> None:
        """Don't wait for what waiting can't mend: source or replicas don't fit the config.

        Raises:
            ConfigError: the first one's reason.
        """
        if self._info is not None or self._source.watched:
            return
        errors = [member.error for member in self._members.values()]
        if self._trouble is not None:
            errors.append(self._trouble)
        final = [error for error in errors if isinstance(error, ConfigError)]
        if final and len(final) == len(errors):
            raise final[0]

    def _nobody(self, waited_s: float) -> EngineError:
        """Why there is no replica: each one's own reason."""
        reasons = [str(self._trouble)] if self._trouble is not None else []
        current = self._current()
        for member in self._members.values():
            behind = f"{member.url} serves weights {member.version}, current are {current}"
            reasons.append(str(member.error) if member.error is not None else behind)
        reasons = reasons or [f"no URL was published in {self._source.name}"]
        return EngineError(
            f"no replica is ready after {waited_s:g} s: {'; '.join(reasons)}",
            status=503,
            code="no_replica",
            retryable=True,
        )

    def _start(self) -> None:
        if self._following is None and not self._closed:
            self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        """Keep the members those that the source names."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.ready_timeout_s
        warned = False
        while True:
            missing = await self._read_source()
            over = self._source.fixed or loop.time() > deadline
            if missing and over and not warned:
                warned = True
                _LOG.warning("replicas without a URL are left out (%s)", self._source.name)
            if not self._source.watched and (over or not missing):
                return
            await asyncio.sleep(self._config.health_interval_s)

    async def _read_source(self) -> bool:
        """Take in what the source says; whether URLs are missing."""
        try:
            found = await self._source.read()
            if found is not None:
                self._apply(found)
        except (EngineError, ConfigError) as error:
            self._trouble = error
            self._tell()
            return True
        self._trouble = None
        return found is None or None in found.entry.urls

    def _apply(self, found: Found) -> None:
        entry = found.entry
        config = self._config.model_copy(
            update={
                "model": self._config.model or entry.model,
                "api_key": self._config.api_key or found.api_key,
            }
        )
        try:
            urls = [check_url(url) for url in without_nulls(entry.urls)]
        except ValueError as error:
            raise ConfigError(f"{self._source.name}: {error}") from error
        for url in [known for known in self._members if known not in urls]:
            self._drop(url)
        for url in urls:
            if url not in self._members:
                self._members[url] = Member(url, self._connect(url, config), self._config, self)
        if self._versions.published != entry.policy_version:
            self._versions.published = entry.policy_version
            for member in self._members.values():
                member.look_again()
            self._tell()

    def _drop(self, url: str, *, at_once: bool = False) -> None:
        """Let go of a replica once its calls are done."""
        member = self._members.pop(url)
        task = asyncio.create_task(member.aclose(at_once=at_once))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def accepts(self, info: EngineInfo) -> None:
        """Whether a replica serves what the others do.

        Raises:
            ConfigError: it doesn't.
        """
        if self._info is None:
            self._info = info
        elif (info.model, info.tokens) != (self._info.model, self._info.tokens):
            raise ConfigError(
                f"it serves {info.model} (tokens: {info.tokens}), the other replicas "
                f"{self._info.model} (tokens: {self._info.tokens})"
            )

    @property
    def published(self) -> Version:
        """The version that the trainer says is current; None where it doesn't."""
        return self._versions.published

    def changed(self) -> None:
        """A member came up, went down or has other weights."""
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
