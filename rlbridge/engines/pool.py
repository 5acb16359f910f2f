"""Several replicas of one policy as one engine. Never repeats a stream that has given something.

Calls of a session stay with a replica while it is well (its prefix cache), others go to the one
with the fewest outstanding. A call that fails in a way that may pass is sent to another replica
from the same tokens: sampling has no side effects, so a call that was half done may be repeated.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from rlbridge.contracts.rollout import FinishReason
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.discovery import Source
from rlbridge.engines.engine import Delta, Engine, EngineCall, EngineInfo, Generation
from rlbridge.engines.member import Member, PoolStats, Replica
from rlbridge.engines.roster import Roster
from rlbridge.errors import EngineError


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
        self._config = config
        self._roster = Roster(source, config, connect)
        self._requests = self._failovers = self._aborts = 0

    async def info(self) -> EngineInfo:
        """What the replicas are; waits for the first, until `ready_timeout_s`.

        Raises:
            EngineError: none came up in time.
            ConfigError: none can be used as the config says.
        """
        roster = self._roster
        if roster.info is None or not roster.able():
            await roster.pick("", set(), self._config.ready_timeout_s)
        assert roster.info is not None  # noqa: S101 # an able member has said it
        return replace(roster.info, policy_version=roster.current())

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
            member = await self._roster.pick(call.session, tried)
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
        await self._roster.aclose()

    @property
    def stats(self) -> PoolStats:
        """Counts since the start, and how each replica is now."""
        able = {member.url for member in self._roster.able()}
        return PoolStats(
            requests=self._requests,
            failovers=self._failovers,
            aborts=self._aborts,
            current_version=self._roster.current(),
            replicas=tuple(member.stats(admitted=member.url in able) for member in self._roster),
        )

    async def _generate(self, call: EngineCall) -> tuple[Generation, ...]:
        self._requests += 1
        tried: set[str] = set()
        for attempt in range(1, self._config.max_attempts + 1):
            member = await self._roster.pick(call.session, tried)
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
        if member.version is None or not self._config.salt_by_version:
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
        if any(member.url not in tried for member in self._roster.able()) and tried:
            return
        wait_s = min(
            self._config.backoff_initial_s * 2 ** (attempt - 1), self._config.backoff_max_s
        )
        await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 # jitter
