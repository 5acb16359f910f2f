"""All training sequences of a rollout, in NeMo-RL's update. Refuses loops that can't take them.

NeMo-RL's batch has one row a rollout. It keeps that here: rewards, baselines, deviations and
dynamic sampling see each rollout once. A rollout's other sequences (sub-agents, branches, what a
compaction left behind) ride in the batch beside its row and join it in `policy.train` alone, in
the same optimizer step and with the same advantage. `grpo_train` is handed a policy that does so;
NeMo-RL has no hook there, and nothing of it is changed.

In a launcher of NeMo-RL's Gym path::

    sequences = AllSequences(config)
    register(gateway=gateway, sequences=sequences)
    ...
    grpo_train(sequences.policy(policy), ...)
"""

import importlib
from typing import Any, NamedTuple

import torch

from rlbridge.errors import ConfigError, RunError
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.sequences import OTHERS
from rlbridge_nemo_rl.training_rows import data_of, filled_up, joined

# Of these the advantage is one number a rollout, whatever its tokens.
_ESTIMATORS = {"grpo", "gdpo"}
_TRAINED = {
    "input_ids", "input_lengths", "generation_logprobs", "token_mask", "sample_mask",
    "prev_logprobs", "reference_policy_logprobs", "advantages",
}  # fmt: skip


def why_one(config: Any) -> str:
    """Why a config's update can't take several sequences a rollout; empty if it can.

    Args:
        config: the `MasterConfig`.
    """
    grpo, policy = (versions.section(config, name) for name in ("grpo", "policy"))
    if versions.value(versions.value(grpo, "async_grpo") or {}, "enabled"):
        return "the buffer of async GRPO (grpo.async_grpo) has one row a rollout"
    name = versions.value(versions.value(grpo, "adv_estimator") or {}, "name", "grpo")
    if name not in _ESTIMATORS:
        return f"the advantages of grpo.adv_estimator={name} depend on a row's own tokens"
    if (policy.get("router_replay") or {}).get("enabled"):
        return "policy.router_replay has the routes of one sequence a rollout"
    return ""


def collect(batch: Any) -> Any:
    """Take the other sequences from the messages that they came with, into a key of the batch.

    Args:
        batch: NeMo-RL's, right after a rollout of Gym's agents.
    """
    batch[OTHERS] = [log[-1].pop(OTHERS, ()) for log in batch["message_log"]]
    return batch


class _Others(NamedTuple):
    """The other sequences of the batch that is to be trained.

    Attributes:
        lengths: of the batch's own rows in tokens, to know them by.
        owners: int64 [others]: the own row of each.
        data: their part of the training data without advantages; None if there are none.
    """

    lengths: list[int]
    owners: torch.Tensor
    data: Any = None


class AllSequences:
    """Trains what `collect` put beside a batch's rows.

    Args:
        config: the `MasterConfig`.

    Raises:
        ConfigError: its update can't take several sequences a rollout; says why.
    """

    def __init__(self, config: Any) -> None:
        if why := why_one(config):
            raise ConfigError(f"one training sequence a rollout: {why}")
        policy = versions.section(config, "policy")
        self._update_rows = int(policy["train_global_batch_size"])
        self._micro_rows = int(policy["train_micro_batch_size"])
        self._logprob_rows = int(policy.get("logprob_batch_size") or self._micro_rows)
        self._width = int(policy["make_sequence_length_divisible_by"])
        grpo = versions.section(config, "grpo")
        self._threshold = versions.value(grpo, "seq_logprob_error_threshold")
        self._policy: _Policy | None = None
        self._waiting: _Others | None = None
        self.caveat = _of_schedule(policy)
        """What a user should know of a run with this config; empty if nothing."""

    def policy(self, policy: Any) -> Any:
        """The policy to hand to `grpo_train`."""
        self._policy = _Policy(policy, self)
        return self._policy

    def estimator(self, estimator: Any) -> Any:
        """The advantage estimator to hand to `grpo_train`: there its batch is final."""
        return _Estimator(estimator, self)

    def note(self, batch: Any, rewards: torch.Tensor) -> None:
        """Prepare the other sequences of a batch that is about to be trained.

        Their logprobs are computed as NeMo-RL has just computed those of its rows, and
        `grpo.seq_logprob_error_threshold` masks each for itself. Those of a masked row are left
        out.

        Args:
            batch: with `loss_multiplier` as it is trained.
            rewards: float [rows].

        Raises:
            RunError: nobody was handed our policy.
        """
        policy = self._policy
        if policy is None:
            raise RunError("hand grpo_train the policy of AllSequences.policy(policy)")
        lengths = [sum(len(part["token_ids"]) for part in log) for log in batch["message_log"]]
        weights = batch["loss_multiplier"].tolist()
        found = [
            (number, row) for number, rows in enumerate(batch[OTHERS]) for row in rows
            if weights[number]
        ]  # fmt: skip
        owners = torch.tensor([number for number, _ in found], dtype=torch.int64)
        self._waiting = _Others(lengths, owners)
        if not found:
            return
        data = data_of([row for _, row in found], batch["loss_multiplier"][owners], self._width)
        multiple = policy.data_parallel_size * self._logprob_rows
        data["prev_logprobs"], data["reference_policy_logprobs"] = policy.logprobs(data, multiple)
        if self._threshold is not None and policy.asked_for_logprobs:
            grpo = importlib.import_module("nemo_rl.algorithms.grpo")
            grpo.compute_and_apply_seq_logprob_error_masking(
                train_data=data,
                rewards=rewards[owners],
                seq_logprob_error_threshold=self._threshold,
            )
        self._waiting = _Others(lengths, owners, data)

    def train(self, policy: Any, data: Any, loss_fn: Any, options: dict[str, Any]) -> Any:
        """NeMo-RL's update, on a batch's rows and their others.

        Args:
            policy: NeMo-RL's.
            data: of the rows alone; left unchanged.
            loss_fn: NeMo-RL's.
            options: of `policy.train`.

        Returns:
            What `policy.train` returns, with `gym/trajectories_per_rollout` and
            `gym/untrained_tokens` among its metrics.

        Raises:
            RunError: these aren't the rows of the batch that was noted.
        """
        others, self._waiting = self._waiting, None
        if others is None or others.lengths != data["input_lengths"].tolist():
            raise RunError(
                "NeMo-RL trains other rows than those whose advantages it computed: whose other "
                "sequences are whose isn't known"
            )
        rollouts = _trained(data)
        untrained, gbs = 0, {}
        if others.data is not None and set(data) - _TRAINED:  # images, of which they have none
            untrained = int((others.data["token_mask"].sum(1) * others.data["sample_mask"]).sum())
        # NeMo-RL refuses rows that aren't whole optimizer steps, by an assert in `train`.
        elif others.data is not None and not len(others.lengths) % self._update_rows:
            multiple = policy.data_parallel_size * self._micro_rows
            data, rows = joined(data, others.data, others.owners, self._update_rows, multiple)
            gbs = {"gbs": rows}
        found = policy.train(data, loss_fn, **options, **gbs)
        figures = {
            "gym/trajectories_per_rollout": [_trained(data) / max(rollouts, 1)],
            "gym/untrained_tokens": [untrained],
        }
        return {**found, "all_mb_metrics": {**found["all_mb_metrics"], **figures}}


class _Policy:
    """NeMo-RL's policy, whose update takes all sequences."""

    def __init__(self, inner: Any, sequences: AllSequences) -> None:
        self._inner = inner
        self._sequences = sequences
        self.asked_for_logprobs = self._asked_for_reference = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_logprobs(self, *args: Any, **options: Any) -> Any:
        self.asked_for_logprobs = True
        return self._inner.get_logprobs(*args, **options)

    def get_reference_policy_logprobs(self, *args: Any, **options: Any) -> Any:
        self._asked_for_reference = True
        return self._inner.get_reference_policy_logprobs(*args, **options)

    def logprobs(self, data: Any, multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the policy and of its reference, of which NeMo-RL asked for; others are 0.

        Args:
            data: without logprobs.
            multiple: of which the number of rows has to be one.

        Returns:
            Float [rows, length] each.
        """
        rows, width = data["input_ids"].shape
        names = ("input_ids", "input_lengths", "token_mask", "sample_mask")
        given = filled_up(type(data)({name: data[name] for name in names}), multiple)
        found = [torch.zeros(rows, width), torch.zeros(rows, width)]
        if self.asked_for_logprobs:
            found[0] = self._inner.get_logprobs(given)["logprobs"][:rows]
        if self._asked_for_reference:
            answer = self._inner.get_reference_policy_logprobs(given)
            found[1] = answer["reference_logprobs"][:rows]
        return found[0], found[1]

    def train(self, data: Any, loss_fn: Any, **options: Any) -> Any:
        self.asked_for_logprobs = self._asked_for_reference = False
        return self._sequences.train(self._inner, data, loss_fn, options)


class _Estimator:
    """NeMo-RL's advantage estimator, which tells of the batch that it is given."""

    def __init__(self, inner: Any, sequences: AllSequences) -> None:
        self._inner = inner
        self._sequences = sequences

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def compute_advantage(
        self, prompt_ids: Any, rewards: Any, mask: Any, repeated_batch: Any, **kwargs: Any
    ) -> Any:
        advantages = self._inner.compute_advantage(
            prompt_ids=prompt_ids, rewards=rewards, mask=mask, repeated_batch=repeated_batch,
            **kwargs,
        )  # fmt: skip
        self._sequences.note(repeated_batch, rewards)
        return advantages


def _trained(data: Any) -> int:
    """How many rows the loss sees."""
    return int((data["sample_mask"] > 0).sum())


def _of_schedule(policy: Any) -> str:
    """What Megatron's learning rate does where a step has more rows than the config says."""
    megatron = policy.get("megatron_cfg") or {}
    schedule = megatron.get("scheduler") or {}
    flat = schedule.get("lr_decay_style") == "constant" and not schedule.get("lr_warmup_iters")
    if not megatron.get("enabled") or flat:
        return ""
    return (
        "policy.megatron_cfg.scheduler counts rows: where rollouts have several training "
        "sequences, its warm-up and decay end earlier by their share (lr_warmup_iters: 0 and "
        "lr_decay_style: constant know no such thing)"
    )
