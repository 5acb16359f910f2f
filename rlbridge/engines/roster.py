"""Which replicas there are and which of them may answer. Follows the source that names them.

Never hands out one that is down, serves something else or has other weights than the current ones.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from rlbridge.engines.config import PolicyConfig, check_url
from rlbridge.engines.discovery import Found, Source
from rlbridge.engines.engine import EngineInfo
from rlbridge.engines.member import Member, Replica
from rlbridge.engines.registry import without_nulls
from rlbridge.engines.versions import Version, Versions, is_current
from rlbridge.errors import ConfigError, EngineError

_LOG: Final = logging.getLogger(__name__)
_SESSIONS: Final = 100_000


class Roster:
    """The replicas that a source names.

    Args:
        source: where their URLs come from.
        config: deadlines and patience.
        connect: makes the engine at a URL.

    Attributes:
        info: what the first replica that came up is, and so the others; None before.
    """

    def __init__(
        self,
        source: Source,
        config: PolicyConfig,
        connect: Callable[[str, PolicyConfig], Replica],
    ) -> None:
        self.info: EngineInfo | None = None
        self._source = source
        self._config = config
        self._connect = connect
        self._versions = Versions()
        self._members: dict[str, Member] = {}
        self._homes: OrderedDict[str, str] = OrderedDict()
        self._trouble: Exception | None = None
        self._news = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    async def pick(self, session: str, tried: set[str], patience_s: float | None = None) -> Member:
        """The replica for a call; waits while none is well and current.

        Args:
            session: whose call it is; empty for nobody's.
            tried: URLs of those to leave out where there are others.
            patience_s: the longest wait; the config's where None.

        Raises:
            EngineError: there is none in time; with each one's reason.
            ConfigError: none can be used as the config says.
        """
        self._start()
        limit_s = self._config.patience_s if patience_s is None else patience_s
        if self.info is None:
            limit_s = max(limit_s, self._config.ready_timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not (able := self.able()):
                    if self._closed:
                        raise EngineError("the pool is closed", code="closed")
                    self._check_config()
                    await self._news.wait()
                return self._choose(session, [m for m in able if m.url not in tried] or able)
        raise self._nobody(limit_s)

    def able(self) -> list[Member]:
        """Those that are up and at the current weights."""
        current = self.current()
        return [m for m in self if m.up and is_current(m.version, current)]

    def current(self) -> Version:
        """The weights that replicas must serve; None where nobody knows."""
        return self._versions.current(member.version for member in self if member.up)

    async def aclose(self) -> None:
        """Let go of every replica; calls in flight fail."""
        self._closed = True
        if self._following is not None:
            self._following.cancel()
        for url in list(self._members):
            self._drop(url, at_once=True)
        self._tell()
        await asyncio.gather(*self._closing, return_exceptions=True)

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

    def _check_config(self) -> None:
        """Don't wait for what waiting can't mend: source or replicas don't fit the config.

        Raises:
            ConfigError: the first one's reason.
        """
        if self.info is not None or self._source.watched:
            return
        errors = [member.error for member in self]
        if self._trouble is not None:
            errors.append(self._trouble)
        final = [error for error in errors if isinstance(error, ConfigError)]
        if final and len(final) == len(errors):
            raise final[0]

    def _nobody(self, waited_s: float) -> EngineError:
        """Why there is no replica: each one's own reason."""
        reasons = [str(self._trouble)] if self._trouble is not None else []
        current = self.current()
        for member in self:
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
            for member in self:
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
        if self.info is None:
            self.info = info
        elif (info.model, info.tokens) != (self.info.model, self.info.tokens):
            raise ConfigError(
                f"it serves {info.model} (tokens: {info.tokens}), the other replicas "
                f"{self.info.model} (tokens: {self.info.tokens})"
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
