"""The sampler on verl's real replay buffer and a real TransferQueue: what leaves, what stops."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl imports what Ray has deprecated
    from rlbridge_verl.sampler import StalledError, TooFewRewardsError, ValidRewardSampler

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
    from tensordict import TensorDict

    def put_group(uid: str, trajectories: int, *, failed: bool = False) -> None:
        status = "failure" if failed else "finished"
        tag = {"is_prompt": True, "status": status, "global_steps": 1}
        queue.kv_batch_put(keys=[uid], partition_id="train", tags=[tag])
        keys = [f"{uid}_{session}_0" for session in range(trajectories)]
        if keys:
            queue.kv_batch_put(
                keys=keys,
                partition_id="train",
                tags=[{"status": "success", "seq_len": 3} for _ in keys],
                fields=TensorDict({"x": torch.zeros(len(keys), 1)}, batch_size=len(keys)),
            )

    yield put_group
    left = (queue.kv_list() or {}).get("train", {})
    if left:
        queue.kv_clear(partition_id="train", keys=list(left))


def _sampler(refill: Callable[[int], None] = lambda _: None, **options: Any) -> ValidRewardSampler:
    kwargs = {"group_size": 3, "poll_interval_s": 0.01, "stall_timeout_s": 0.3, **options}
    return ValidRewardSampler(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=kwargs,
        refill_fn=refill,
    )


def test_whole_groups_pass_untouched(put: Callable[..., None]) -> None:
    put("a", 3)
    put("b", 3)
    batch, metrics = _sampler().sample(1, "train", 2)
    assert len(batch.keys) == 6
    assert (metrics["gym/valid"], metrics["gym/invalid"]) == (6.0, 0.0)


def test_a_lone_survivor_leaves_and_a_pair_stays(put: Callable[..., None]) -> None:
    put("a", 1, failed=True)
    put("b", 2, failed=True)
    batch, metrics = _sampler(max_invalid_share=1.0).sample(1, "train", 2)
    assert sorted(batch.keys) == ["b_0_0", "b_1_0"]
    assert metrics["gym/lone_survivors"] == 1.0
    assert metrics["gym/invalid"] == 3.0
    assert metrics["gym/valid_share"] == pytest.approx(0.5)


def test_a_step_with_nothing_left_draws_fresh_prompts(put: Callable[..., None]) -> None:
    put("a", 0, failed=True)
    put("b", 1, failed=True)
    asked = []

    def refill(count: int) -> None:
        asked.append(count)
        put("c", 3)
        put("d", 3)

    batch, metrics = _sampler(refill, max_invalid_share=1.0).sample(1, "train", 2)
    assert asked == [2]
    assert {key[0] for key in batch.keys} == {"c", "d"}
    assert (metrics["gym/expected"], metrics["gym/invalid"]) == (12.0, 5.0)


def test_too_large_a_share_of_invalid_rewards_stops_the_run(put: Callable[..., None]) -> None:
    def fail_again(_count: int) -> None:
        put("a", 0, failed=True)

    fail_again(1)
    sampler = _sampler(fail_again, max_invalid_share=0.5, window_steps=2)
    with pytest.raises(TooFewRewardsError, match=r"6 of the last 6 rewards are invalid"):
        sampler.sample(1, "train", 1)


def test_a_bad_step_among_good_ones_does_not_stop_the_run(put: Callable[..., None]) -> None:
    sampler = _sampler(max_invalid_share=0.5, window_steps=2)
    put("a", 3)
    sampler.sample(1, "train", 1)
    put("b", 2, failed=True)
    batch, _ = sampler.sample(2, "train", 1)
    assert len(batch.keys) == 2


def test_a_step_that_makes_no_progress_ends_instead_of_waiting_forever(
    put: Callable[..., None],
) -> None:
    put("a", 3)
    with pytest.raises(StalledError, match="1 of 2 groups are done"):
        _sampler().sample(1, "train", 2)
