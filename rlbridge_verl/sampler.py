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
from rlbridge_verl.census import Census, figures, note_validity
from rlbridge_verl.scoring import GYM_PARTITION


class TooFewRewardsError(RunError):
    """Too large a share of the last rewards is invalid; training on the rest would be a guess."""


class StalledError(RunError):
    """The rollouts of a step made no progress for longer than allowed."""


class ValidRewardSampler(ReplayBuffer):
    """Samples only groups in which at least two trajectories have a reward.

    Takes from `trainer.v1.sampler.sampler_kwargs`: `group_size` (rollout.n), `max_invalid_share`
    (0 to 1], `window_steps`, `stall_timeout_s` and `poll_interval_s` (seconds).

    Raises:
        TooFewRewardsError: the share of missing rewards over the window is above the limit, or
            no reward of a validation batch is valid. Samples that their environment masks don't
            count as missing.
        StalledError: no trajectory ended for `stall_timeout_s`.
    """

    def __init__(self, *, sampler_kwargs: Any, **kwargs: Any) -> None:
        options = dict(sampler_kwargs)
        self._group_size = int(options.get("group_size", 1))
        self._max_invalid_share = float(options.get("max_invalid_share", 0.5))
        self._window: deque[Census] = deque(maxlen=int(options.get("window_steps", 3)))
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
            return self._sample_validation(global_steps, batch_size)
        total = Census()
        while True:
            self._await_groups(partition_id, batch_size)
            census = self._drop_lone_survivors(partition_id)
            total += census
            self._check_share(census, global_steps)
            if census.sampleable:
                break
            self._refill(partition_id, batch_size)
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        return batch, {**metrics, **total.metrics(), **figures(batch)}

    def _sample_validation(self, step: int, batch_size: int) -> tuple[Any, dict[str, float]]:
        self._await_groups("val", batch_size)
        census = self._count("val", group_size=0)
        batch, metrics = super().sample(step, "val", batch_size)
        if not batch.keys:
            raise TooFewRewardsError(
                f"validation at step {step}: no rollout of {batch_size} prompts has a reward "
                f"({census.why()}); see the run's rewards/ folder for the reason of each"
            )
        note_validity(batch, census)
        return batch, metrics

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

    def _sessions(self, partition_id: str, uids: set[str]) -> dict[str, dict[str, list[str]]]:
        """Keys of trajectories by prompt and sample: {uid}_{session}_{index} in verl's words."""
        found: dict[str, dict[str, list[str]]] = {uid: {} for uid in uids}
        for key in self.partitions[partition_id]:
            uid, session, _ = key.rsplit("_", 2)
            if uid in found:
                found[uid].setdefault(session, []).append(key)
        return found

    def _count(self, partition_id: str, *, group_size: int) -> Census:
        """What became of the ended groups' rollouts; forgets the reasons it has counted.

        Args:
            partition_id: "train" or "val".
            group_size: rollouts a group; 0 where only those heard of count.
        """
        ended = self._ended(partition_id)
        sessions = self._sessions(partition_id, ended)
        told = {
            key: tag
            for key, tag in self.partitions[GYM_PARTITION].items()
            if key.rsplit("_", 1)[0] in ended
        }
        if told:
            tq.kv_clear(partition_id=GYM_PARTITION, keys=list(told))
        present = sum(len(samples) for samples in sessions.values())
        expected = len(ended) * group_size or present + len(told)
        failures = Counter(str(tag["failure"]) for tag in told.values())
        return Census(expected, present, failures=failures)

    def _drop_lone_survivors(self, partition_id: str) -> Census:
        """Clear trajectories that are alone in their group; count what is there and what isn't."""
        census = self._count(partition_id, group_size=self._group_size)
        if self._group_size == 1:
            return census
        sessions = self._sessions(partition_id, self._ended(partition_id))
        alone = [samples for samples in sessions.values() if len(samples) == 1]
        for samples in alone:
            (keys,) = samples.values()
            tq.kv_clear(partition_id=partition_id, keys=keys)
        return census + Census(lone=len(alone))

    def _check_share(self, census: Census, step: int) -> None:
        self._window.append(census)
        over = sum(self._window, Census())
        full = len(self._window) == self._window.maxlen
        if full and over.missing > self._max_invalid_share * over.expected:
            raise TooFewRewardsError(
                f"step {step}: {over.missing} of the last {over.expected} rollouts have no reward "
                f"({over.why()}), more than trainer.max_invalid_share={self._max_invalid_share}; "
                "see the run's rewards/ folder and train.log for the reason of each, mend what "
                "failed, and resume"
            )

    def _refill(self, partition_id: str, batch_size: int) -> None:
        """Replace a step's groups, none of which can be trained on, by as many fresh prompts."""
        self._clear_groups(partition_id, self._ended(partition_id))
        self.refill_fn(batch_size)
