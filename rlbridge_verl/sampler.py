"""verl's replay buffer, with rewards that are missing taken seriously.

verl's V1 trainer drops a trajectory whose reward raises, and trains on what is left of its group.
Two cases of that go wrong, and this buffer, plugged in by verl's public
`trainer.v1.sampler.custom_sampler`, handles both: a lone survivor of a GRPO group would get its
raw score as advantage (there is no baseline), so it leaves the batch too; and a step with no
trajectory left would end the run, so fresh prompts are drawn instead. It also counts, stops the
run when too few rewards are valid, and never waits without end.
"""

import time
from collections import Counter, deque
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from rlbridge.errors import RunError


class TooFewRewardsError(RunError):
    """Too large a share of the last rewards is invalid; training on the rest would be a guess."""


class StalledError(RunError):
    """The rollouts of a step made no progress for longer than allowed."""


class ValidRewardSampler(ReplayBuffer):
    """Samples only groups in which at least two trajectories have a reward.

    Takes from `trainer.v1.sampler.sampler_kwargs`: `group_size` (rollout.n), `max_invalid_share`
    (0 to 1], `window_steps`, `stall_timeout_s` and `poll_interval_s` (seconds).

    Raises:
        TooFewRewardsError: the share of invalid rewards over the window is above the limit.
        StalledError: no trajectory ended for `stall_timeout_s`.
    """

    def __init__(self, *, sampler_kwargs: Any, **kwargs: Any) -> None:
        options = dict(sampler_kwargs)
        self._group_size = int(options.get("group_size", 1))
        self._max_invalid_share = float(options.get("max_invalid_share", 0.5))
        self._window: deque[tuple[int, int]] = deque(maxlen=int(options.get("window_steps", 3)))
        self._stall_timeout_s = float(options.get("stall_timeout_s", 1800.0))
        super().__init__(
            sampler_kwargs=sampler_kwargs,
            poll_interval=float(options.get("poll_interval_s", 0.2)),
            **kwargs,
        )

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[Any, dict[str, float]]:
        """Wait for `batch_size` groups and sample them; see the class for what leaves first."""
        if partition_id == "val":
            return super().sample(global_steps, partition_id, batch_size)  # type: ignore[no-any-return]
        totals: Counter[str] = Counter()
        while True:
            self._await_groups(partition_id, batch_size)
            counts = self._drop_lone_survivors(partition_id)
            totals.update(counts)
            self._check_share(counts, global_steps)
            if counts["expected"] > counts["invalid"] + counts["lone"]:
                break
            self._refill(partition_id, batch_size)
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        return batch, {**metrics, **_metrics(totals)}

    def _await_groups(self, partition_id: str, batch_size: int) -> None:
        last_progress, seen = time.monotonic(), -1
        while True:
            self._sync_metadata_from_transfer_queue()
            ended = self._ended(partition_id)
            if len(ended) >= batch_size:
                return
            done = len(ended) + len(self.partitions[partition_id])
            if done != seen:
                last_progress, seen = time.monotonic(), done
            elif time.monotonic() - last_progress > self._stall_timeout_s:
                raise StalledError(
                    f"no rollout ended for {self._stall_timeout_s:.0f} s: {len(ended)} of "
                    f"{batch_size} groups are done; an agent loop or rollout worker may be dead "
                    "(see the run's train.log)"
                )
            time.sleep(self.poll_interval)

    def _ended(self, partition_id: str) -> set[str]:
        return set(self.finished_keys[partition_id] | self.failure_keys[partition_id])

    def _drop_lone_survivors(self, partition_id: str) -> Counter[str]:
        """Clear trajectories that are alone in their group; count what is there and what isn't."""
        ended = self._ended(partition_id)
        sessions: dict[str, set[str]] = {uid: set() for uid in ended}
        keys: dict[str, list[str]] = {uid: [] for uid in ended}
        for key in self.partitions[partition_id]:
            uid, session, _ = key.rsplit("_", 2)  # {uid}_{session}_{index}
            if uid in sessions:
                sessions[uid].add(session)
                keys[uid].append(key)
        alone = [uid for uid in ended if self._group_size > 1 and len(sessions[uid]) == 1]
        for uid in alone:
            tq.kv_clear(partition_id=partition_id, keys=keys[uid])
        expected = len(ended) * self._group_size
        present = sum(len(found) for found in sessions.values())
        return Counter(expected=expected, invalid=expected - present, lone=len(alone))

    def _check_share(self, counts: Counter[str], step: int) -> None:
        self._window.append((counts["invalid"], counts["expected"]))
        invalid = sum(part for part, _ in self._window)
        expected = sum(whole for _, whole in self._window)
        full = len(self._window) == self._window.maxlen
        if full and invalid > self._max_invalid_share * expected:
            raise TooFewRewardsError(
                f"step {step}: {invalid} of the last {expected} rewards are invalid, more than "
                f"trainer.max_invalid_share={self._max_invalid_share}; see the run's rewards/ "
                "folder for the reason of each, mend the reward server, and resume"
            )

    def _refill(self, partition_id: str, batch_size: int) -> None:
        """Replace a step's groups, none of which can be trained on, by as many fresh prompts."""
        self._clear_groups(partition_id, self._ended(partition_id))
        self.refill_fn(batch_size)


def _metrics(totals: Counter[str]) -> dict[str, float]:
    expected = totals["expected"]
    valid = expected - totals["invalid"]
    return {
        "gym/expected": float(expected),
        "gym/valid": float(valid),
        "gym/invalid": float(totals["invalid"]),
        "gym/lone_survivors": float(totals["lone"]),
        "gym/valid_share": valid / expected,
    }
