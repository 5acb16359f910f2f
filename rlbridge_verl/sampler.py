"""verl's replay buffers, with rewards that are missing taken seriously.

verl's V1 trainer drops a trajectory whose reward raises, and trains on what is left of its group.
Two cases of that go wrong, and this buffer, plugged in by verl's public
`trainer.v1.sampler.custom_sampler`, handles both: a lone survivor of a GRPO group would get its
raw score as advantage (there is no baseline), so it leaves the batch too; and a step with no
trajectory left would end the run, so fresh prompts are drawn instead. It also counts, stops the
run when too few rewards are valid, and never waits without end.

For verl's async trainers `ValidRewardSamplerAsync` does the same. verl's own drops every group in
which a rollout failed, with its valid trajectories; this one keeps those that are two or more.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from rlbridge.errors import RunError
from rlbridge_verl.census import Census, figures, note_validity
from rlbridge_verl.scoring import GYM_PARTITION


class TooFewRewardsError(RunError):
    """Too large a share of the last rewards is invalid; training on the rest would be a guess."""


class StalledError(RunError):
    """The rollouts of a step made no progress for longer than allowed."""


class _Counting:
    """What both samplers share: counting, stopping, waiting. Sits before one of verl's buffers.

    Takes from `trainer.v1.sampler.sampler_kwargs`: `group_size` (rollout.n), `max_invalid_share`
    (0 to 1], `window_steps`, `stall_timeout_s` and `poll_interval_s` (seconds).
    """

    partitions: dict[str, dict[str, dict[str, Any]]]
    finished_keys: dict[str, set[str]]
    failure_keys: dict[str, set[str]]
    poll_interval: float
    _sync_metadata_from_transfer_queue: Callable[[], None]

    def __init__(self, *, sampler_kwargs: Any, **kwargs: Any) -> None:
        options = dict(sampler_kwargs)
        self._group_size = int(options.get("group_size", 1))
        self._max_invalid_share = float(options.get("max_invalid_share", 0.5))
        self._window: deque[Census] = deque(maxlen=int(options.get("window_steps", 3)))
        self._stall_timeout_s = float(options.get("stall_timeout_s", 1800.0))
        self._progress = (0.0, -1)
        interval = float(options.get("poll_interval_s", 0.2))
        super().__init__(sampler_kwargs=sampler_kwargs, poll_interval=interval, **kwargs)  # type: ignore[call-arg]

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

    def _count(self, partition_id: str, uids: set[str], *, group_size: int) -> Census:
        """What became of these groups' rollouts; forgets the reasons it has counted.

        Args:
            partition_id: "train" or "val".
            uids: of groups that ended.
            group_size: rollouts a group; 0 where only those heard of count.
        """
        sessions = self._sessions(partition_id, uids)
        told = {
            key: tag
            for key, tag in self.partitions[GYM_PARTITION].items()
            if key.rsplit("_", 1)[0] in uids
        }
        if told:
            tq.kv_clear(partition_id=GYM_PARTITION, keys=list(told))
        present = sum(len(samples) for samples in sessions.values())
        expected = len(uids) * group_size or present + len(told)
        failures = Counter(str(tag["failure"]) for tag in told.values())
        return Census(expected, present, failures=failures)

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

    def _await_groups(self, partition_id: str, batch_size: int) -> None:
        self._progress = (time.monotonic(), -1)
        while True:
            self._sync_metadata_from_transfer_queue()
            if len(self._ended(partition_id)) >= batch_size:
                return
            self._note_progress(partition_id)
            time.sleep(self.poll_interval)

    def _note_progress(self, partition_id: str) -> None:
        """Raises `StalledError` when nothing has ended for too long."""
        ended = len(self._ended(partition_id))
        done = ended + len(self.partitions[partition_id])
        since, seen = self._progress
        if done != seen:
            self._progress = (time.monotonic(), done)
        elif time.monotonic() - since > self._stall_timeout_s:
            raise StalledError(
                f"no rollout ended for {self._stall_timeout_s:.0f} s: {ended} groups are done and "
                "not enough; an agent loop or rollout worker may be dead (see the run's train.log)"
            )

    def _sample_validation(self, step: int, batch_size: int) -> tuple[Any, dict[str, float]]:
        self._await_groups("val", batch_size)
        census = self._count("val", self._ended("val"), group_size=0)
        batch, metrics = super().sample(step, "val", batch_size)  # type: ignore[misc]
        if not batch.keys:
            raise TooFewRewardsError(
                f"validation at step {step}: no rollout of {batch_size} prompts has a reward "
                f"({census.why()}); see the run's rewards/ folder for the reason of each"
            )
        note_validity(batch, census)
        return batch, metrics


class ValidRewardSampler(_Counting, ReplayBuffer):
    """Samples only groups in which at least two trajectories have a reward; see the module.

    Raises:
        TooFewRewardsError: the share of missing rewards over the window is above the limit, or
            no reward of a validation batch is valid. Samples that their environment masks don't
            count as missing.
        StalledError: no trajectory ended for `stall_timeout_s`.
    """

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[Any, dict[str, float]]:
        """Wait for `batch_size` groups and sample them; see the module for what leaves first."""
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
        batch, metrics = ReplayBuffer.sample(self, global_steps, partition_id, batch_size)
        return batch, {**metrics, **total.metrics(), **figures(batch)}

    def _drop_lone_survivors(self, partition_id: str) -> Census:
        """Clear trajectories that are alone in their group; count what is there and what isn't."""
        ended = self._ended(partition_id)
        census = self._count(partition_id, ended, group_size=self._group_size)
        if self._group_size == 1:
            return census
        alone = [s for s in self._sessions(partition_id, ended).values() if len(s) == 1]
        for samples in alone:
            (keys,) = samples.values()
            tq.kv_clear(partition_id=partition_id, keys=keys)
        return census + Census(lone=len(alone))

    def _refill(self, partition_id: str, batch_size: int) -> None:
        """Replace a step's groups, none of which can be trained on, by as many fresh prompts."""
        self._clear_groups(partition_id, self._ended(partition_id))
        self.refill_fn(batch_size)


class ValidRewardSamplerAsync(_Counting, ReplayBufferAsync):
    """The same for verl's async trainers; groups that are too thin are replaced by fresh prompts.

    Raises:
        TooFewRewardsError: as `ValidRewardSampler`.
        StalledError: as `ValidRewardSampler`.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._census = Census()
        super().__init__(**kwargs)

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[Any, dict[str, float]]:
        """Sample `batch_size` groups as soon as there are so many that can be trained on."""
        if partition_id == "val":
            return self._sample_validation(global_steps, batch_size)
        self._progress = (time.monotonic(), -1)
        batch, metrics = ReplayBufferAsync.sample(self, global_steps, partition_id, batch_size)
        census, self._census = self._census, Census()
        self._check_share(census, global_steps)
        return batch, {**metrics, **census.metrics(), **figures(batch)}

    def _terminal_eviction_reasons(
        self, global_steps: int, partition_id: str
    ) -> tuple[set[str], set[str], set[str], Counter[float]]:
        """Stale groups, and failed ones of which too little is left; the rest is trained on."""
        if partition_id == "val":
            return set(), set(), set(), Counter()
        stale = self._stale_terminal_keys(global_steps, partition_id)
        failed = self._sessions(partition_id, set(self.failure_keys[partition_id]))
        least = min(2, self._group_size)
        thin = {uid for uid, samples in failed.items() if len(samples) < least}
        return stale, set(), thin, Counter()

    def _evict_terminal_groups(
        self, global_steps: int, partition_id: str, eviction_reasons: Any
    ) -> Any:
        thin = eviction_reasons[2]
        if thin:
            counted = self._count(partition_id, thin, group_size=self._group_size)
            self._census += counted + Census(lone=counted.present)
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)

    def _select_prompt_uids(self, partition_id: str, keys: set[str], batch_size: int) -> Any:
        selected = super()._select_prompt_uids(partition_id, keys, batch_size)
        if partition_id != "val":
            chosen = set(selected[0])
            self._census += self._count(partition_id, chosen, group_size=self._group_size)
        return selected

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> Any:
        self._note_progress(partition_id)
        return super()._wait_for_next_poll(partition_id, last_debug_time)
