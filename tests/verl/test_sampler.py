"""The sampler on verl's real replay buffer and a real TransferQueue: what leaves, what stops."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl imports what Ray has deprecated
    from rlbridge_verl.sampler import (
        StalledError,
        TooFewRewardsError,
        ValidRewardSampler,
        ValidRewardSamplerAsync,
    )

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def queue() -> Iterator[Any]:
    import hydra
    import ray
    import transfer_queue

    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose(
            "ppo_trainer",
            overrides=[
                "transfer_queue.enable=true",
                "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
                "transfer_queue.backend.SimpleStorage.total_storage_size=1000",
            ],
        )
    ray.init(num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    transfer_queue.init(config.transfer_queue)
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


@pytest.fixture
def put(queue: Any) -> Iterator[Callable[..., None]]:
    """Put a finished group with so many scored trajectories into the queue."""
    import torch
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    def put_group(
        uid: str, trajectories: int, *failures: str, partition: str = "train", **info: Any
    ) -> None:
        """`failures`: what the other rollouts of the group said before they raised."""
        status = "failure" if failures else "finished"
        tag = {"is_prompt": True, "status": status, "global_steps": 1}
        queue.kv_batch_put(keys=[uid], partition_id=partition, tags=[tag])
        keys = [f"{uid}_{session}_0" for session in range(trajectories)]
        if keys:
            fields = [
                {
                    "rm_scores": torch.tensor([0.0, 1.0]),
                    "data_source": "counter" if n % 2 else "weather",
                    "extra_fields": {"reward_extra_info": {"gym/latency_s": 0.1 * n, **info}},
                }
                for n in range(trajectories)
            ]
            queue.kv_batch_put(
                keys=keys,
                partition_id=partition,
                tags=[{"status": "success", "seq_len": 3} for _ in keys],
                fields=list_of_dict_to_tensordict(fields),
            )
        for n, failure in enumerate(failures, start=trajectories):
            if failure != "silent":
                queue.kv_put(key=f"{uid}_{n}", partition_id="gym", tag={"failure": failure})

    yield put_group
    for partition in ("train", "val", "gym"):
        left = (queue.kv_list() or {}).get(partition, {})
        if left:
            queue.kv_clear(partition_id=partition, keys=list(left))


def _sampler(
    refill: Callable[[int], None] = lambda _: None,
    cls: type[Any] = ValidRewardSampler,
    **options: Any,
) -> Any:
    kwargs = {"group_size": 3, "poll_interval_s": 0.01, "stall_timeout_s": 0.3, **options}
    return cls(
        trainer_mode="sync" if cls is ValidRewardSampler else "colocate_async",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=kwargs,
        refill_fn=refill,
    )


def test_whole_groups_pass_untouched_and_their_figures_reach_verls_loggers(
    put: Callable[..., None],
) -> None:
    put("a", 3)
    put("b", 3, part=0.5)
    batch, metrics = _sampler().sample(1, "train", 2)
    assert len(batch.keys) == 6
    assert (metrics["gym/valid"], metrics["gym/invalid"]) == (6.0, 0.0)
    assert metrics["gym/latency_s/mean"] == pytest.approx(0.1)
    assert metrics["gym/latency_s/max"] == pytest.approx(0.2)
    assert metrics["part/mean"] == 0.5  # a key that only some rollouts report
    assert metrics["gym/environment/weather/rollouts"] == 4.0
    assert metrics["gym/environment/counter/reward/mean"] == 1.0


def test_a_lone_survivor_leaves_and_a_pair_stays(put: Callable[..., None]) -> None:
    put("a", 1, "timeout", "timeout")
    put("b", 2, "bad_row")
    batch, metrics = _sampler(max_invalid_share=1.0).sample(1, "train", 2)
    assert sorted(batch.keys) == ["b_0_0", "b_1_0"]
    assert metrics["gym/lone_survivors"] == 1.0
    assert metrics["gym/invalid"] == 3.0
    assert metrics["gym/invalid/timeout"] == 2.0
    assert metrics["gym/invalid/bad_row"] == 1.0
    assert metrics["gym/valid_share"] == pytest.approx(0.5)


def test_masked_samples_and_failed_generations_are_no_invalid_rewards(
    put: Callable[..., None],
) -> None:
    put("a", 2, "masked")
    put("b", 2, "engine_failed")
    put("c", 2, "silent")
    sampler = _sampler(max_invalid_share=0.23, window_steps=1)  # two of nine are missing
    _, metrics = sampler.sample(1, "train", 3)
    assert metrics["gym/invalid"] == 0.0
    assert (metrics["gym/masked"], metrics["gym/engine_failed"]) == (1.0, 1.0)
    assert metrics["gym/unexplained"] == 1.0


def test_the_async_sampler_keeps_what_is_left_of_a_group_and_replaces_a_lone_survivor(
    put: Callable[..., None],
) -> None:
    put("a", 2, "timeout")  # verl's own would drop these two
    put("b", 1, "timeout", "engine_failed")
    asked = []

    def refill(count: int) -> None:
        asked.append(count)
        put("c", 3)

    batch, metrics = _sampler(refill, cls=ValidRewardSamplerAsync).sample(1, "train", 2)
    assert asked == [1]
    assert {key[0] for key in batch.keys} == {"a", "c"}
    assert len(batch.keys) == 5
    assert (metrics["gym/expected"], metrics["gym/valid"]) == (9.0, 6.0)
    assert (metrics["gym/invalid"], metrics["gym/engine_failed"]) == (2.0, 1.0)
    assert metrics["gym/lone_survivors"] == 1.0
    assert metrics["gym/latency_s/max"] == pytest.approx(0.2)


def test_the_async_sampler_stops_too(put: Callable[..., None]) -> None:
    put("a", 3)
    with pytest.raises(StalledError, match="1 groups are done and not enough"):
        _sampler(cls=ValidRewardSamplerAsync).sample(1, "train", 2)
    sampler = _sampler(cls=ValidRewardSamplerAsync, window_steps=1, max_invalid_share=0.1)
    put("b", 2, "timeout")
    with pytest.raises(TooFewRewardsError, match="1 of the last 6 rollouts"):
        sampler.sample(1, "train", 2)


def test_a_reason_is_counted_once(put: Callable[..., None], queue: Any) -> None:
    put("a", 2, "timeout")
    sampler = _sampler()
    sampler.sample(1, "train", 1)
    assert "gym" not in queue.kv_list() or not queue.kv_list()["gym"]


def test_a_step_with_nothing_left_draws_fresh_prompts(put: Callable[..., None]) -> None:
    put("a", 0, "timeout", "timeout", "timeout")
    put("b", 1, "timeout", "timeout")
    asked = []

    def refill(count: int) -> None:
        asked.append(count)
        put("c", 3)
        put("d", 3)

    batch, metrics = _sampler(refill, max_invalid_share=1.0).sample(1, "train", 2)
    assert asked == [2]
    assert {key[0] for key in batch.keys} == {"c", "d"}
    assert (metrics["gym/expected"], metrics["gym/invalid"]) == (12.0, 5.0)


def test_too_large_a_share_of_missing_rewards_stops_the_run_with_the_reasons(
    put: Callable[..., None],
) -> None:
    def fail_again(_count: int) -> None:
        put("a", 0, "timeout", "timeout", "engine_failed")

    fail_again(1)
    sampler = _sampler(fail_again, max_invalid_share=0.5, window_steps=2)
    words = r"6 of the last 6 rollouts have no reward \(4 timeout, 2 engine_failed\)"
    with pytest.raises(TooFewRewardsError, match=words):
        sampler.sample(1, "train", 1)


def test_a_bad_step_among_good_ones_does_not_stop_the_run(put: Callable[..., None]) -> None:
    sampler = _sampler(max_invalid_share=0.5, window_steps=2)
    put("a", 3)
    sampler.sample(1, "train", 1)
    put("b", 2, "timeout")
    batch, _ = sampler.sample(2, "train", 1)
    assert len(batch.keys) == 2


def test_a_step_that_makes_no_progress_ends_instead_of_waiting_forever(
    put: Callable[..., None],
) -> None:
    put("a", 3)
    with pytest.raises(StalledError, match="1 groups are done and not enough"):
        _sampler().sample(1, "train", 2)


def test_validation_reports_its_valid_share_and_none_at_all_is_an_error(
    put: Callable[..., None], queue: Any
) -> None:
    put("v", 1, "bad_row", partition="val")
    batch, _ = _sampler().sample(1, "val", 1)
    (extra,) = (
        queue.kv_batch_get(keys=batch.keys, partition_id="val", select_fields=["extra_fields"])
        .get("extra_fields")
        .tolist()
    )
    assert extra["reward_extra_info"]["gym/valid_share"] == 0.5
    queue.kv_clear(partition_id="val", keys=batch.keys)
    put("w", 0, "timeout", partition="val")
    with pytest.raises(TooFewRewardsError, match=r"no rollout of 1 prompts has a reward"):
        _sampler().sample(1, "val", 1)


def _trajectory(uid: str, score: float, tokens: int) -> dict[str, Any]:
    import torch

    prompts, responses = torch.arange(3), torch.arange(tokens)
    mask = torch.ones(tokens, dtype=torch.int64)
    rm_scores = torch.zeros(tokens)
    rm_scores[-1] = score
    return {
        "uid": uid,
        "prompts": prompts,
        "responses": responses,
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": torch.cat([prompts, responses]),
        "position_ids": torch.arange(3 + tokens),
        "rm_scores": rm_scores,
        "rollout_log_probs": torch.full((tokens,), -0.5),
        "num_turns": 2,
        "data_source": "counter",
        "extra_fields": {"reward_extra_info": {}},
    }


def _advantages(queue: Any, batch: Any) -> dict[str, list[float]]:
    """What verl's trainer computes for a batch, by trajectory, with its own code."""
    import numpy as np
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    data = queue.kv_batch_get(
        keys=batch.keys,
        partition_id=batch.partition_id,
        select_fields=["uid", "response_mask", "rm_scores"],
    )
    proto = DataProto(batch=data.to_padded_tensor())
    proto.non_tensor_batch["uid"] = np.array(proto.batch.pop("uid").tolist(), dtype=object)
    proto.batch["token_level_rewards"] = proto.batch["rm_scores"]
    proto = compute_advantage_for_multi_trajectories(proto, batch.keys, "grpo")
    return dict(zip(batch.keys, proto.batch["advantages"].tolist(), strict=True))


def test_a_group_with_invalid_rewards_has_the_advantages_of_the_group_without_those_rows(
    queue: Any, put: Callable[..., None]
) -> None:
    import numpy as np
    import torch
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    scores = {"a_0_0": 1.0, "a_2_0": 0.25, "b_0_0": 0.0, "b_1_0": 1.0, "b_2_0": 1.0}
    rows = [_trajectory(key[0], score, 2 + n) for n, (key, score) in enumerate(scores.items())]
    put("a", 0, "timeout")
    put("b", 0)
    queue.kv_put(key="a_1", partition_id="gym", tag={"failure": "timeout"})
    queue.kv_batch_put(
        keys=list(scores),
        partition_id="train",
        fields=list_of_dict_to_tensordict(rows),
        tags=[{"status": "success", "seq_len": 3 + len(row["responses"])} for row in rows],
    )
    batch, _ = _sampler().sample(1, "train", 2)
    padded = upsample_batch_to_divisible_size(batch, 6, eos_token_id=0)
    assert len(padded.keys) == 6
    found = _advantages(queue, padded)
    queue.kv_clear(partition_id="train", keys=padded.keys)

    for uid in ("a", "b"):  # each group alone, as if the missing row had never been
        keys = sorted(key for key in scores if key.startswith(uid))
        rewards = torch.tensor([[scores[key]] for key in keys])
        alone, _ = core_algos.compute_grpo_outcome_advantage(
            token_level_rewards=rewards,
            response_mask=torch.ones_like(rewards),
            index=np.array([uid] * len(keys), dtype=object),
        )
        assert [found[key][0] for key in keys] == alone[:, 0].tolist()
    (pad,) = (key for key in padded.keys if key not in scores)
    assert set(found[pad]) == {0.0}
