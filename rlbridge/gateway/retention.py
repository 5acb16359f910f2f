"""A gateway's own captures, bounded in age and size: pruned when it starts and a segment is full.

Its folder is its alone, so it knows which sessions can still go on: those in memory. Any other is
deleted in time, ended or not; asking for it afterwards is a 410 that says so. Refuses nothing:
what can't be deleted is logged and tried again.
"""

import asyncio
import logging
import time
from collections import Counter
from contextlib import suppress
from typing import Final

from rlbridge.errors import ConfigError
from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.config import CaptureConfig
from rlbridge.gateway.prune_plan import Plan, Rule, plan
from rlbridge.gateway.pruning import carry_out, locked
from rlbridge.gateway.store import SessionStore

_LOG: Final = logging.getLogger(__name__)
_DAY_S: Final = 86_400.0
# A pruning reads every index; between two of them it rests so many times as long as one took.
_REST: Final = 20


class Retention:
    """Deletes captures while the gateway runs.

    Args:
        log: where calls are captured.
        store: the sessions in memory.
        config: how much is kept.
        counts: `pruned_segments`, `pruned_sessions`, `pruned_bytes` and `prune_errors` are
            counted here.
    """

    def __init__(
        self,
        log: CaptureLog,
        store: SessionStore,
        config: CaptureConfig,
        counts: Counter[str],
    ) -> None:
        self._folder = log.folder
        self._config = config
        self._log = log
        self._store = store
        self._counts = counts
        self._task = asyncio.create_task(self._keep_on())

    async def aclose(self) -> None:
        """Stop; a pruning that has begun is finished first."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _keep_on(self) -> None:
        while True:
            begun_s = time.monotonic()
            pruning = asyncio.ensure_future(self._prune())
            try:
                await asyncio.shield(pruning)
            except asyncio.CancelledError:
                await pruning
                raise
            await asyncio.sleep(_REST * (time.monotonic() - begun_s))
            await self._log.full.wait()
            self._log.full.clear()

    async def _prune(self) -> None:
        try:
            with locked(self._folder):
                found = await asyncio.to_thread(plan, self._folder, self._rule())
                if not self._given_up(found):
                    return
                await asyncio.to_thread(carry_out, self._folder, found)
        except (OSError, ConfigError) as error:
            self._counts["prune_errors"] += 1
            _LOG.warning("captures in %s could not be pruned: %s", self._folder, error)
            return
        self._counts["pruned_segments"] += len(found.goes)
        self._counts["pruned_sessions"] += found.sessions
        self._counts["pruned_bytes"] += found.bytes

    def _rule(self) -> Rule:
        days, gb = self._config.keep_days, self._config.keep_gb
        return Rule(
            float("-inf") if days is None else time.time() - days * _DAY_S,
            None if gb is None else gb * 1e9,
            lambda name: not self._store.holds(name),
            gateway=True,
        )

    def _given_up(self, found: Plan) -> bool:
        """Forget the sessions that go; False if one was used again since the plan was made."""
        for name, path in found.open_sessions.items():
            if self._store.holds(name) or self._log.newest_segment(name) not in {path, None}:
                return False
        self._log.forget(found.open_sessions)
        self._store.give_up(found.open_sessions, "was idle, and its captures were deleted in time")
        return True
