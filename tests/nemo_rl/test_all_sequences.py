"""All of a rollout's sequences in NeMo-RL's update: whose they are and what they weigh."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlbridge.errors import ConfigError, RunError
from rlbridge_nemo_rl.all_sequences import AllSequences, collect, why_one
from rlbridge_nemo_rl.sequences import OTHERS, TrainingRow
from rlbridge_nemo_rl.training_rows import PADDING, updates
from tests.nemo_rl.policies import LearningPolicy


def config(**grpo: Any) -> Any:
    policy = {
        "train_global_batch_size": 4,
        "train_micro_batch_size": 1,
        "make_sequence_length_divisible_by": 4,
    }
    return SimpleNamespace(policy=policy | grpo.pop("policy", {}), grpo=grpo)


@given(st.data())
def test_every_update_has_its_rollouts_sequences_and_as_many_rows_as_the_others(
    data: st.DataObject,
) -> None:
    update_rows, steps, multiple = (data.draw(st.integers(1, 6)) for _ in range(3))
    rows = update_rows * steps
    owners = data.draw(st.lists(st.integers(0, rows - 1), max_size=20))
    made = updates(rows, owners, update_rows, multiple)
    assert len(made) == steps
    assert {len(step) % multiple for step in made} == {0}
    assert len({len(step) for step in made}) == 1
    placed = [number for step in made for number in step if number != PADDING]
    assert sorted(placed) == list(range(rows + len(owners)))
    for number, step in enumerate(made):
        for row in step:
            if row != PADDING:
                own = row if row < rows else owners[row - rows]
                assert own // update_rows == number


def test_an_update_without_other_sequences_keeps_its_rows() -> None:
    assert updates(4, [], 2, 2) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"async_grpo": {"enabled": True}}, "grpo.async_grpo"),
        ({"adv_estimator": {"name": "reinforce_plus_plus"}}, "reinforce_plus_plus"),
        ({"policy": {"router_replay": {"enabled": True}}}, "router_replay"),
    ],
)
def test_a_loop_that_cannot_take_several_sequences_is_named(
    wrong: dict[str, Any], named: str
) -> None:
    assert named in why_one(config(**wrong))
    with pytest.raises(ConfigError, match=named):
        AllSequences(config(**wrong))


def test_megatrons_schedule_is_a_caveat_where_it_is_not_flat() -> None:
    def caveat(enabled: bool, **scheduler: Any) -> str:
        megatron = {"enabled": enabled, "scheduler": {"lr_decay_style": "constant", **scheduler}}
        return AllSequences(config(policy={"megatron_cfg": megatron})).caveat

    assert caveat(True, lr_warmup_iters=0) == caveat(False, lr_warmup_iters=9) == ""
    assert "counts rows" in caveat(True, lr_warmup_iters=9)
    assert "counts rows" in caveat(True, lr_decay_style="cosine")


class Recording:
    """NeMo-RL's policy as far as `grpo_train` sees it: its logprob of a token is the token's."""

    def __init__(self, ranks: int = 1) -> None:
        self.data_parallel_size = ranks
        self.asked: list[int] = []
        self.updates: list[Any] = []

    def get_logprobs(self, data: Any, timer: Any = None) -> Any:
        self.asked.append(len(data["input_ids"]))
        return {"logprobs": -data["input_ids"].float() / 100}

    def get_reference_policy_logprobs(self, data: Any, timer: Any = None) -> Any:
        return {"reference_logprobs": -data["input_ids"].float() / 200}

    def train(self, data: Any, loss_fn: Any, **options: Any) -> Any:
        self.updates.append((data, options))
        return {"loss": 0.5, "all_mb_metrics": {"lr": [1.0]}}


class Estimator:
    """As NeMo-RL's GRPO's: one number a row, in every column."""

    def compute_advantage(self, rewards: torch.Tensor, mask: torch.Tensor, **_: Any) -> Any:
        return (rewards - rewards.mean())[:, None].expand(mask.shape)


REWARDS = [1.0, 0.0, 0.0, 1.0]


def other(*token_ids: int, logprob: float = -0.5) -> TrainingRow:
    """A sequence with a prompt of one token."""
    mask = np.array([False] + [True] * (len(token_ids) - 1))
    logprobs = np.where(mask, np.float32(logprob), np.float32(0))
    return TrainingRow(np.array(token_ids), mask, logprobs)


def step(
    policy: Recording,
    others: dict[int, list[TrainingRow]],
    *,
    masked: int | None = None,
    logprobs: bool = True,
    sequences: AllSequences | None = None,
    **more: Any,
) -> tuple[Any, Any]:
    """A training step as `grpo_train` does it, of four rollouts; its data and its result."""
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    sequences = sequences or AllSequences(config())
    ours = sequences.policy(policy)
    logs: list[Any] = [
        [
            {"role": "user", "token_ids": torch.tensor([1])},
            {"role": "assistant", "token_ids": torch.tensor([10 + row, 2])},
        ]
        for row in range(4)
    ]
    for row, found in others.items():
        logs[row][-1][OTHERS] = tuple(found)
    multiplier = torch.tensor([0.0 if row == masked else 1.0 for row in range(4)])
    batch = collect(BatchedDataDict(message_log=logs, loss_multiplier=multiplier))
    assert not any(OTHERS in message for log in logs for message in log)
    ids = torch.tensor([[1, 10 + row, 2, 0] for row in range(4)])
    data = BatchedDataDict(
        input_ids=ids,
        input_lengths=torch.tensor([3] * 4),
        generation_logprobs=torch.zeros(4, 4),
        token_mask=torch.tensor([[0, 1, 1, 0]] * 4),
        sample_mask=multiplier,
        **more,
    )
    data["prev_logprobs"] = torch.zeros(4, 4)
    data["reference_policy_logprobs"] = torch.zeros(4, 4)
    if logprobs:
        data["prev_logprobs"] = ours.get_logprobs(data, timer=None)["logprobs"]
    rewards = torch.tensor(REWARDS)
    data["advantages"] = sequences.estimator(Estimator()).compute_advantage(
        prompt_ids=ids[:, :1], rewards=rewards, mask=data["token_mask"], repeated_batch=batch
    )
    return data, ours.train(data, "loss", timer=None)


@pytest.mark.nemo_rl
def test_a_sequence_is_trained_with_its_rollouts_advantage_beside_its_row() -> None:
    policy = Recording()
    sub = other(7, 8, 9, 8, 9, 8)
    data, result = step(policy, {2: [sub], 3: [other(5, 6)]})
    ((whole, options),) = policy.updates
    assert options == {"timer": None, "gbs": 6}
    assert whole["input_ids"].tolist() == [
        [1, 10, 2, 0, 0, 0, 0, 0],
        [1, 11, 2, 0, 0, 0, 0, 0],
        [1, 12, 2, 0, 0, 0, 0, 0],
        [7, 8, 9, 8, 9, 8, 0, 0],  # columns are a multiple of 4
        [1, 13, 2, 0, 0, 0, 0, 0],
        [5, 6, 0, 0, 0, 0, 0, 0],
    ]
    assert whole["input_lengths"].tolist() == [3, 3, 3, 6, 3, 2]
    assert whole["token_mask"][3].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert whole["generation_logprobs"][3].tolist() == [0, *[-0.5] * 5, 0, 0]
    assert torch.equal(whole["prev_logprobs"][3], -whole["input_ids"][3].float() / 100)
    assert not whole["reference_policy_logprobs"].any()  # nobody asked for them
    # Rewards 1, 0, 0, 1: each rollout counts once in the mean, however many sequences it has.
    assert whole["advantages"][:, 1].tolist() == [0.5, -0.5, -0.5, -0.5, 0.5, 0.5]
    assert whole["sample_mask"].tolist() == [1] * 6
    assert len(data["input_ids"]) == 4  # what NeMo-RL logs is of its own rows
    assert result["all_mb_metrics"] == {
        "lr": [1.0],
        "gym/trajectories_per_rollout": [1.5],
        "gym/untrained_tokens": [0],
    }


@pytest.mark.nemo_rl
def test_each_sampled_token_pulls_by_its_rollouts_advantage_and_padding_by_nothing(
    tokenizer: Any,
) -> None:
    """NeMo-RL's loss over a joined update, against the policy gradient written out."""
    from nemo_rl.algorithms.loss import ClippedPGLossConfig, ClippedPGLossFn

    if not hasattr(ClippedPGLossConfig, "model_fields"):
        pytest.skip("v0.6's loss is another, and its Gym path isn't launched")
    recording = Recording(ranks=4)
    step(recording, {0: [other(5, 6, 7)], 1: [other(7, 8, 9, 8, 9)]}, masked=3)
    ((whole, options),) = recording.updates
    assert (options["gbs"], int(whole["sample_mask"].sum())) == (8, 5)
    policy = LearningPolicy(tokenizer)
    whole["prev_logprobs"] = policy.get_logprobs(whole)["logprobs"]
    config = ClippedPGLossConfig(reference_policy_kl_penalty=0.0)
    sampled = [
        (0.5, [1, 10, 2]), (0.5, [5, 6, 7]), (-0.5, [1, 11, 2]), (-0.5, [7, 8, 9, 8, 9]),
        (-0.5, [1, 12, 2]),
    ]  # fmt: skip
    loss = torch.tensor(0.0)
    for advantage, ids in sampled:
        loss = loss - advantage * policy._next_logprobs(torch.tensor([ids])).sum()
    (loss / sum(len(ids) - 1 for _, ids in sampled)).backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)  # as the policy does
    expected = [parameter.grad.clone() for parameter in policy.model.parameters()]
    policy.train(whole, ClippedPGLossFn(config))
    for parameter, wanted in zip(policy.model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, wanted, atol=1e-5)


@pytest.mark.nemo_rl
def test_an_update_of_whole_rollouts_is_nemo_rls_own() -> None:
    policy = Recording()
    data, _ = step(policy, {})
    assert policy.asked == [4]
    ((given, options),) = policy.updates
    assert given is data
    assert options == {"timer": None}


@pytest.mark.nemo_rl
def test_a_masked_rollout_has_no_sequence_in_the_loss() -> None:
    policy = Recording()
    step(policy, {1: [other(5, 6)], 2: [other(7, 8)]}, masked=1)
    ((whole, _),) = policy.updates
    assert whole["sample_mask"].tolist() == [1, 0, 1, 1, 1]
    assert [5, 6] not in [ids[:2] for ids in whole["input_ids"].tolist()]


@pytest.mark.nemo_rl
def test_logprobs_are_computed_where_nemo_rl_computes_its_own() -> None:
    policy = Recording(ranks=3)
    sequences = AllSequences(config(policy={"logprob_batch_size": 2}))
    step(policy, {0: [other(5, 6)]}, sequences=sequences)
    assert policy.asked == [4, 6]  # a multiple of ranks and microbatches
    step(policy, {0: [other(5, 6)]}, sequences=sequences, logprobs=False)
    assert policy.asked == [4, 6]
    assert not policy.updates[1][0]["prev_logprobs"].any()


@pytest.mark.nemo_rl
def test_a_sequence_whose_logprobs_differ_too_much_is_masked_alone() -> None:
    policy = Recording()
    sequences = AllSequences(config(seq_logprob_error_threshold=1.5))
    good, bad = other(5, 6, logprob=-0.06), other(5, 7, logprob=-5.0)
    step(policy, {0: [good, bad]}, sequences=sequences)
    ((whole, _),) = policy.updates
    assert whole["sample_mask"].tolist() == [1, 1, 0, 1, 1, 1]


@pytest.mark.nemo_rl
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_nemo_rl_shards_it_into_as_many_optimizer_steps(ranks: int, packed: bool) -> None:
    """Its own sharding of a batch over ranks, and its own reading of a step on each."""
    policy = Recording(ranks)
    sequences = AllSequences(config(policy={"train_global_batch_size": 2}))
    step(policy, {0: [other(5, 6), other(5, 7)], 3: [other(7, 8)]}, sequences=sequences)
    ((whole, options),) = policy.updates
    gbs = options["gbs"]
    assert len(whole["input_ids"]) == 2 * gbs
    packing = {
        "max_tokens_per_microbatch": 16, "algorithm": "first_fit_decreasing",
        "input_key": "input_ids", "input_lengths_key": "input_lengths",
        "sequence_length_pad_multiple": 1,
    }  # fmt: skip
    if packed:
        shards, _ = whole.shard_by_batch_size(ranks, gbs, sequence_packing_args=packing)
    else:
        shards = whole.shard_by_batch_size(ranks, gbs)
    for number, expected in enumerate(
        [[(1, 10), (5, 6), (5, 7), (1, 11)], [(1, 12), (1, 13), (7, 8)]]
    ):
        batches = [shard.get_batch(number, gbs // ranks) for shard in shards]
        found = [
            tuple(ids[:2])
            for batch in batches
            for ids, mask in zip(batch["input_ids"].tolist(), batch["sample_mask"], strict=True)
            if mask
        ]
        assert sorted(found) == sorted(expected)


@pytest.mark.nemo_rl
def test_what_has_fields_that_other_sequences_lack_is_trained_alone_and_counted() -> None:
    policy = Recording()
    data, result = step(policy, {0: [other(5, 6, 7)]}, pixel_values=torch.zeros(4, 2))
    assert policy.updates[0][0] is data
    assert result["all_mb_metrics"]["gym/untrained_tokens"] == [2]


@pytest.mark.nemo_rl
def test_rows_that_are_not_the_batchs_are_refused() -> None:
    sequences = AllSequences(config())
    ours = sequences.policy(Recording())
    with pytest.raises(RunError, match="trains other rows"):
        ours.train({"input_lengths": torch.tensor([3])}, "loss")
    with pytest.raises(RunError, match="hand grpo_train the policy"):
        AllSequences(config()).note({}, torch.zeros(1))
