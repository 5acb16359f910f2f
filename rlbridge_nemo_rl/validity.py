"""Rewards that are missing, kept out of NeMo-RL's loss and baselines. Refuses to invent one.

NeMo-RL carries rewards in a float tensor and has no mask for them, so a reward that could not be
computed travels as NaN, the one float that nobody takes for a score. `settle` is where it ends:
right after the rollout the row gets `loss_multiplier` 0 (NeMo-RL's own mask), and its reward the
mean of the valid ones of its group, which shifts neither their mean nor the logged one. That
number is a filler behind a mask, never a verdict: `ValidAdvantages` computes advantages from the
valid rows alone, as if the others had never been sampled, and gives the others zero.
"""

import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from rlbridge.errors import RunError
from rlbridge_nemo_rl import agent_figures

NO_REWARD = float("nan")
"""What stands in a rewards tensor where there is no reward."""
VALID = "reward_valid"
"""Batch key, bool [batch]: whether `total_reward` is a verdict."""
ENDED_ROLE = "environment"
"""Role of our environment's last observation."""
OPEN_ROLE = "tool_results"
"""Role of an observation after which the rollout should have gone on."""


class TooFewRewardsError(RunError):
    """Too large a share of the last rewards is invalid; training on the rest would be a guess."""


class InvalidShare:
    """Stops a run whose rewards are mostly missing.

    Args:
        max_share: of the rewards of the window's steps, (0, 1].
        window_steps: how many steps the share is taken over.
    """

    def __init__(self, max_share: float = 0.5, window_steps: int = 3) -> None:
        self._max_share = max_share
        self._window: deque[tuple[int, int]] = deque(maxlen=window_steps)

    def add(self, valid: torch.Tensor) -> None:
        """Take a step's rewards into account.

        Args:
            valid: bool [batch].

        Raises:
            TooFewRewardsError: the share of invalid rewards over the window is above the limit.
        """
        self._window.append((int((~valid).sum()), len(valid)))
        invalid = sum(part for part, _ in self._window)
        whole = sum(count for _, count in self._window)
        if len(self._window) == self._window.maxlen and invalid > self._max_share * whole:
            raise TooFewRewardsError(
                f"{invalid} of the last {whole} rewards are invalid, more than "
                f"trainer.max_invalid_share={self._max_share}; see the run's rewards/ folder for "
                "the reason of each, mend the reward server, and resume"
            )


def settle(batch: Any, turn_end: int | None = None) -> Any:
    """Mask the rows of a rollout that have no reward. Settling twice is settling once.

    Args:
        batch: NeMo-RL's batch after a rollout: `total_reward` [batch] with NaN where there is no
            reward, `message_log`, and in training `loss_multiplier` and `length`.
        turn_end: the token a turn ends with; None if nobody knows.

    Returns:
        The same batch: `loss_multiplier` 0 in these rows, `total_reward` filled, `reward_valid`
        added. A batch without one valid reward keeps NaN: nobody knows its mean.
    """
    if VALID in batch:
        return batch
    rewards = batch["total_reward"]
    valid = _scored(batch) & ~_cut(batch, turn_end)
    batch[VALID] = valid
    if not bool(valid.all()):
        if "loss_multiplier" in batch:
            batch["loss_multiplier"] = batch["loss_multiplier"] * valid
        batch["total_reward"] = filled(rewards, valid, _groups(batch))
    return batch


def figures(rewards: torch.Tensor, valid: torch.Tensor) -> dict[str, float]:
    """NeMo-RL's figures of a rollout's rewards, over valid ones only; none if there are none.

    Args:
        rewards: float [batch].
        valid: bool [batch].
    """
    known = rewards[valid].float()
    if not len(known):
        return {}
    found = {"mean": known.mean(), "max": known.max(), "min": known.min()}
    return {f"{name}_total_reward": float(value) for name, value in found.items()}


def correct_figures(metrics: dict[str, Any], batch: Any) -> None:
    """Replace the figures of a rollout's rewards that a missing one spoilt.

    Args:
        metrics: NeMo-RL's of the rollout; the synchronous one has no such figures.
        batch: settled.
    """
    if bool(batch[VALID].all()) or "mean_total_reward" not in metrics:
        return
    for name in ("mean", "max", "min"):
        del metrics[f"{name}_total_reward"]
    metrics |= figures(batch["total_reward"], batch[VALID])


def _scored(batch: Any) -> torch.Tensor:
    """Bool [batch]: rows with a verdict. NaN is none, and neither is a sum nobody finished.

    NeMo-RL leaves reward 0 where a generation failed (nothing follows the prompt) and where a
    rollout was cut before its end (the context or the turns ran out): both are no verdicts.
    """
    scored = ~torch.isnan(batch["total_reward"])
    lengths = batch["length"].tolist() if "length" in batch else [0] * len(scored)
    for row, (log, length) in enumerate(zip(batch["message_log"], lengths, strict=True)):
        if log[-1]["role"] == OPEN_ROLE or not _generated(log, length):
            scored[row] = False
    return scored


def _cut(batch: Any, turn_end: int | None) -> torch.Tensor:
    """Bool [batch]: rows that went on behind a turn that was cut at its token limit.

    NeMo-RL's async rollout ends there, without a verdict; the other one puts the observation
    behind half a turn and goes on (RL#3851). Here both are the same.
    """
    found = torch.zeros(len(batch["message_log"]), dtype=torch.bool)
    if turn_end is None or "truncated" not in batch:
        return found
    for row in torch.where(torch.as_tensor(batch["truncated"], dtype=torch.bool))[0].tolist():
        log = batch["message_log"][row]
        found[row] = any(
            message["role"] == "assistant"
            and after["role"] == OPEN_ROLE
            and int(message["token_ids"][-1]) != turn_end
            for message, after in itertools.pairwise(log)
        )
    return found


def _generated(log: Any, prompt_length: int) -> bool:
    """Whether an assistant's message follows the prompt, which may hold such messages too."""
    at = 0
    for message in log:
        if at >= prompt_length and message["role"] == "assistant":
            return True
        at += len(message["token_ids"])
    return False


def filled(rewards: torch.Tensor, valid: torch.Tensor, groups: list[bytes]) -> torch.Tensor:
    """`rewards` with the mean of the valid ones of the group (else of the batch) where invalid.

    Args:
        rewards: float [batch].
        valid: bool [batch].
        groups: what rows of one group share.
    """
    out = rewards.clone()
    overall = rewards[valid].mean()  # NaN if there is none
    members: dict[bytes, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    for rows in members.values():
        index = torch.tensor(rows)
        known = valid[index]
        mean = rewards[index][known].mean() if bool(known.any()) else overall
        out[index[~known]] = mean.to(out.dtype)
    return out


def _groups(batch: Any) -> list[bytes]:
    """The prompt's token IDs of each row: by them NeMo-RL groups, so by them we do."""
    lengths = batch["length"].tolist() if "length" in batch else None
    keys = []
    for row, log in enumerate(batch["message_log"]):
        ids, count = [], 0
        for message in log:
            if lengths is not None and count >= lengths[row]:
                break
            ids.append(message["token_ids"].to(torch.int64))
            count += len(message["token_ids"])
            if lengths is None:
                break
        keys.append(torch.cat(ids).numpy().tobytes() if ids else b"")
    return keys


class ValidAdvantages:
    """An advantage estimator that sees only the rows whose reward is valid.

    Args:
        inner: NeMo-RL's estimator, any of them.
        share: is told of every step.
    """

    def __init__(self, inner: Any, share: InvalidShare) -> None:
        self._inner = inner
        self._share = share
        self.last_metrics: dict[str, Any] = {}
        """What async GRPO logs in place of figures that a missing reward spoilt."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def compute_advantage(
        self,
        prompt_ids: torch.Tensor,
        rewards: torch.Tensor,
        mask: torch.Tensor,
        repeated_batch: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Advantages [batch, sequence], zero in rows without a reward.

        In async GRPO batches come from a collector in another process, unsettled: there the
        loss's `sample_mask` [batch] is an argument too (in 0.6 it is the batch's
        `loss_multiplier`), and is mended in place, like `rewards`.
        """
        valid = _valid(rewards, repeated_batch)
        self._share.add(valid)
        self.last_metrics = {}
        advantages = self._of_valid(prompt_ids, rewards, mask, repeated_batch, kwargs, valid)
        self.last_metrics |= getattr(self._inner, "last_metrics", None) or {}
        return advantages

    def _of_valid(
        self,
        prompt_ids: torch.Tensor,
        rewards: torch.Tensor,
        mask: torch.Tensor,
        repeated_batch: Any,
        kwargs: Mapping[str, Any],
        valid: torch.Tensor,
    ) -> torch.Tensor:
        if bool(valid.all()):
            return self._advantages(prompt_ids, rewards, mask, repeated_batch, kwargs)
        in_loss = kwargs.get("sample_mask")
        if in_loss is None and repeated_batch is not None:
            in_loss = repeated_batch.get("loss_multiplier")  # the same tensor, in 0.6's async loop
        if in_loss is not None:
            in_loss.mul_(valid)
        self.last_metrics = figures(rewards, valid) | agent_figures.of_valid(
            rewards, valid, repeated_batch
        )
        groups = [row.numpy().tobytes() for row in prompt_ids.cpu()]
        rewards.copy_(filled(rewards, valid, groups))
        advantages = torch.zeros(mask.shape, dtype=torch.float32)
        if bool(valid.any()):
            rows = torch.where(valid)[0]
            part = repeated_batch if repeated_batch is None else _rows(repeated_batch, rows)
            given = {key: _rows_of(value, rows, len(valid)) for key, value in kwargs.items()}
            advantages[rows] = self._advantages(
                prompt_ids[rows], rewards[rows], mask[rows], part, given
            ).to(advantages.dtype)
        return advantages

    def _advantages(
        self,
        prompt_ids: torch.Tensor,
        rewards: torch.Tensor,
        mask: torch.Tensor,
        batch: Any,
        kwargs: Mapping[str, Any],
    ) -> torch.Tensor:
        found: torch.Tensor = self._inner.compute_advantage(
            prompt_ids=prompt_ids, rewards=rewards, mask=mask, repeated_batch=batch, **kwargs
        )
        return found


def _valid(rewards: torch.Tensor, batch: Any) -> torch.Tensor:
    if batch is None:
        return ~torch.isnan(rewards)
    valid: torch.Tensor = batch[VALID] if VALID in batch else _scored(batch)
    return valid


def _rows(batch: Any, rows: torch.Tensor) -> Any:
    """Those rows of a `BatchedDataDict`."""
    return batch.select_indices(rows.tolist())


def _rows_of(value: Any, rows: torch.Tensor, batch_size: int) -> Any:
    per_row = isinstance(value, torch.Tensor) and value.dim() and len(value) == batch_size
    return value[rows] if per_row else value
