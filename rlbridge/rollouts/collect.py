"""Collects rollouts: plays what is missing, keeps each as it comes, goes on after anything.

A rollout's way: a task of the input goes to a player, its outcome to the store; infrastructure
failures are tried again first. Refuses to burn through an input while everything fails: many
failures in a row end the run, with nothing lost.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from rlbridge.contracts.reward import Fault
from rlbridge.errors import RunError
from rlbridge.rollouts.outcome import Outcome
from rlbridge.rollouts.player import Player, play_within
from rlbridge.rollouts.store import Store
from rlbridge.rollouts.tally import Tally
from rlbridge.rollouts.tasks import Task

_BACKOFF_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How hard to try.

    Attributes:
        concurrency: rollouts under way at once.
        attempts: how often a rollout is played at most while infrastructure fails it.
        backoff_s: the wait before the second attempt, seconds; doubles, with jitter.
        timeout_s: the longest a rollout may take, seconds.
        give_up_after: so many infrastructure failures in a row end the run.
    """

    concurrency: int = 32
    attempts: int = 3
    backoff_s: float = 1.0
    timeout_s: float = 1800.0
    give_up_after: int = 100


class Collection:
    """One run over the tasks that are missing.

    Args:
        player: plays them.
        store: keeps them; open.
        tally: counts them.
        pace: how hard to try.
        on_kept: called with each rollout that was kept.
    """

    def __init__(
        self,
        player: Player,
        store: Store,
        tally: Tally,
        pace: Pace,
        on_kept: Callable[[Task, Outcome], None] = lambda _task, _outcome: None,
    ) -> None:
        self._player = player
        self._store = store
        self._tally = tally
        self._pace = pace
        self._on_kept = on_kept
        self._failed_in_a_row = 0

    async def run(self, tasks: Iterator[Task]) -> None:
        """Play all tasks to their end.

        Raises:
            RunError: the disk is full, or everything fails; says what to do.
        """

        async def work() -> None:
            for task in tasks:
                await self._one(task)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._pace.concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _one(self, task: Task) -> None:
        before = self._store.failed.get(task.key, 0)
        for attempt in range(1, self._pace.attempts + 1):
            outcome = await play_within(self._player, task, self._pace.timeout_s)
            failure = outcome.failure
            if failure is None or failure.fault is Fault.DATA or attempt == self._pace.attempts:
                break
            self._tally.retries += 1
            await asyncio.sleep(self._wait_s(attempt))
        if failure is None:
            await self._store.put(task.key, outcome.row)
        else:
            told = failure.fields(before + attempt)
            await self._store.put_failure(task.key, {**outcome.row, **told})
        self._tally.count(outcome)
        self._on_kept(task, outcome)
        self._give_up_if_all_fail(outcome)

    def _wait_s(self, attempt: int) -> float:
        wait_s = self._pace.backoff_s * 2.0 ** (attempt - 1)
        return min(wait_s, _BACKOFF_MAX_S) * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)

    def _give_up_if_all_fail(self, outcome: Outcome) -> None:
        failure = outcome.failure
        if failure is None or failure.fault is Fault.DATA:
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._pace.give_up_after:
            raise RunError(
                f"{self._failed_in_a_row} rollouts in a row failed, the last one with "
                f"{failure.failure}: {failure.detail}. Mend that, then run the same command with "
                "--retry-failed: what is done stays done"
            )
