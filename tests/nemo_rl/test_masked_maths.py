"""NeMo-RL's real estimator and loss on batches with missing rewards, against arithmetic by hand.

The expected numbers are computed here, a token at a time in Python's floats, from the formulas of
NeMo-RL's docs/guides/grpo.md, over the rows that have rewards and no others.
"""

import math
import statistics
from typing import Any

import pytest
import torch

from tests.nemo_rl.conftest import Section

pytestmark = pytest.mark.nemo_rl

MISSING = None
GROUPS: dict[str, list[float | None]] = {
    "whole": [0.0, 1.0, 0.5, -2.0],
    "three of four": [1.0, MISSING, 0.0, 1.0],
    "two of four": [MISSING, 1.0, 0.0, MISSING],
    "one of four": [MISSING, MISSING, 0.5, MISSING],
    "none of four": [MISSING] * 4,
    "all equal": [0.25] * 4,
    "equal where there are any": [0.25, MISSING, 0.25, 0.25],
}
PROMPT, WIDTH, CLIP, KL = 3, 9, 0.2, 0.1


def by_hand(
    rewards: list[float | None], *, leave_one_out: bool, normalize: bool
) -> list[float | None]:
    """Advantages of one group; None where there is none."""
    valid = [index for index, reward in enumerate(rewards) if reward is not None]
    found: list[float | None] = [None] * len(rewards)
    for index in valid:
        left_out = index if leave_one_out else None
        pool = [reward for at in valid if at != left_out and (reward := rewards[at]) is not None]
        own = rewards[index]
        assert own is not None
        advantage = own - statistics.fmean(pool) if len(valid) > 1 else 0.0
        deviation = statistics.stdev(pool) if len(pool) > 1 else 0.0
        found[index] = advantage / (deviation + 1e-6) if normalize and deviation else advantage
    return found


def rolled_out() -> Any:
    """What a rollout leaves: a group after another, answers of many lengths, NaN for no reward."""
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    rewards = [reward for group in GROUPS.values() for reward in group]
    logs = []
    for row in range(len(rewards)):
        prompt = torch.full((PROMPT,), row // 4)
        answer = torch.arange(1 + row % (WIDTH - PROMPT))
        logs.append(
            [
                {"role": "user", "content": "", "token_ids": prompt},
                {"role": "assistant", "content": "", "token_ids": answer},
                {"role": "environment", "content": "", "token_ids": torch.arange(0)},
            ]
        )
    return BatchedDataDict(
        message_log=logs,
        length=torch.full((len(rewards),), PROMPT),
        loss_multiplier=torch.ones(len(rewards)),
        total_reward=torch.tensor([math.nan if r is None else r for r in rewards]),
    )


def trained_on(batch: Any) -> Any:
    """Its tensors as the loss takes them, with random logprobs of three policies."""
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    rows = len(batch["message_log"])
    random = torch.Generator().manual_seed(0)
    mask = torch.zeros(rows, WIDTH)
    for row, log in enumerate(batch["message_log"]):
        mask[row, PROMPT : PROMPT + len(log[1]["token_ids"])] = 1
    return BatchedDataDict(
        input_ids=torch.zeros(rows, WIDTH, dtype=torch.int64),
        token_mask=mask,
        sample_mask=batch["loss_multiplier"],
        **{
            name: -2 * torch.rand(rows, WIDTH, generator=random)
            for name in ("prev_logprobs", "generation_logprobs", "reference_policy_logprobs", "now")
        },
    )


def estimator(*, leave_one_out: bool, normalize: bool) -> Any:
    """As `grpo_train` makes it once rlbridge is registered."""
    from nemo_rl.algorithms import grpo

    from rlbridge_nemo_rl import register

    register()
    ours = Section(
        name="grpo", use_leave_one_out_baseline=leave_one_out, normalize_rewards=normalize
    )
    config = Section(grpo=Section(adv_estimator=ours), loss_fn=Section())
    return grpo._create_advantage_estimator(config)


def loss_of(data: Any) -> tuple[float, torch.Tensor]:
    """NeMo-RL's loss, and its gradient for the logprobs of every token."""
    from nemo_rl.algorithms.loss import loss_functions

    config = loss_functions.ClippedPGLossConfig(
        reference_policy_kl_penalty=KL, reference_policy_kl_type="k3", kl_input_clamp_value=20.0,
        kl_output_clamp_value=10.0, ratio_clip_min=CLIP, ratio_clip_max=CLIP, ratio_clip_c=None,
        use_on_policy_kl_approximation=False, use_importance_sampling_correction=True,
        truncated_importance_sampling_ratio=None, truncated_importance_sampling_type=None,
        token_level_loss=True, force_on_policy_ratio=False,
    )  # fmt: skip
    now = data["now"][:, 1:].clone().requires_grad_()
    tokens = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
    loss, _ = loss_functions.ClippedPGLossFn(config)(
        next_token_logprobs=now,
        data=data,
        global_valid_seqs=data["sample_mask"].sum(),
        global_valid_toks=tokens.sum(),
    )
    loss.backward()
    assert now.grad is not None
    return float(loss), now.grad


def loss_by_hand(data: Any, advantages: list[float | None]) -> float:
    total, tokens = 0.0, 0
    for row, advantage in enumerate(advantages):
        if advantage is None:
            continue
        for at in torch.where(data["token_mask"][row] > 0)[0].tolist():
            now, before, sampled, reference = (
                float(data[name][row, at])
                for name in ("now", "prev_logprobs", "generation_logprobs",
                             "reference_policy_logprobs")
            )  # fmt: skip
            ratio = math.exp(now - before)
            clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
            worse = max(-advantage * ratio, -advantage * clipped)
            apart = reference - now
            total += math.exp(before - sampled) * worse
            total += KL * (math.exp(apart) - apart - 1)
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("settled", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("normalize", [True, False], ids=["std", "raw"])
@pytest.mark.parametrize("leave_one_out", [True, False], ids=["loo", "mean"])
def test_advantages_and_loss_are_those_of_the_rows_that_have_rewards(
    leave_one_out: bool, normalize: bool, settled: bool
) -> None:
    from rlbridge_nemo_rl.validity import settle

    options = {"leave_one_out": leave_one_out, "normalize": normalize}
    expected = [a for group in GROUPS.values() for a in by_hand(group, **options)]
    batch = settle(rolled_out()) if settled else rolled_out()
    data = trained_on(batch)
    advantages = estimator(**options).compute_advantage(
        prompt_ids=torch.stack([log[0]["token_ids"] for log in batch["message_log"]]),
        rewards=batch["total_reward"],
        mask=data["token_mask"] * data["sample_mask"][:, None],
        repeated_batch=batch,
        logprobs_policy=data["prev_logprobs"],
        logprobs_reference=None,
        **({} if settled else {"sample_mask": data["sample_mask"]}),
    )
    wanted = torch.tensor([a or 0.0 for a in expected])
    assert torch.allclose(advantages[:, 0], wanted, rtol=1e-5, atol=1e-6)
    assert data["sample_mask"].tolist() == [float(a is not None) for a in expected]
    data["advantages"] = advantages
    loss, gradient = loss_of(data)
    assert loss == pytest.approx(loss_by_hand(data, expected), rel=1e-5)
    kept = torch.tensor([a is not None for a in expected])
    assert not gradient[~kept].any()
    alone, theirs = loss_of(data.select_indices(torch.where(kept)[0].tolist()))
    assert loss == pytest.approx(alone, rel=1e-6)
    assert torch.allclose(gradient[kept], theirs)
