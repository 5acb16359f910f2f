"""What async GRPO tells of Gym agents' rollouts, and of the weights that played them."""

import math

import pytest
import torch

from rlbridge_nemo_rl.agent_figures import of_valid, summed
from rlbridge_nemo_rl.refits import refitting


def test_our_counts_are_added_up_and_the_rest_is_left_to_nemo_rl() -> None:
    def mean(groups: dict[str, list[float]]) -> dict[str, float]:
        return {name: sum(found) / len(found) for name, found in groups.items()}

    groups = {"gym/valid": [8.0, 7.0], "gym/invalid/timeout": [1.0], "turns/mean": [1.0, 3.0]}
    assert summed(mean)(groups) == {
        "gym/valid": 15.0, "gym/invalid/timeout": 1.0, "turns/mean": 2.0,
    }  # fmt: skip


def test_figures_of_rewards_leave_fillers_out_and_are_none_where_nobody_has_a_reward() -> None:
    rewards, valid = torch.tensor([1.0, 0.0, 0.5, 0.5]), torch.tensor([True, True, False, False])
    agents = [{"name": "a"}, {"name": "a"}, {"name": "a"}, {"name": "b"}]
    found = of_valid(rewards, valid, {"agent_ref": agents})
    for name in ("total_reward", "a/reward"):
        assert [found[f"{name}/{part}"] for part in ("mean", "max", "min")] == [0.5, 1.0, 0.0]
    assert math.isnan(found["b/reward/mean"])
    assert of_valid(rewards, valid, {}) == {}


class Gateway:
    """What a gateway is told."""

    def __init__(self, weights: int | None) -> None:
        self.weights = weights
        self.told: list[int | str | None] = []

    def serve(self, weights: int | None) -> None:
        self.weights = weights
        self.told.append(weights)

    def wait_until_unlabelled(self) -> None:
        self.told.append("waited for")


def test_no_gateway_labels_an_answer_while_weights_change() -> None:
    gateways = [Gateway(3), Gateway(3)]
    with refitting(gateways):
        assert [gateway.told for gateway in gateways] == [[None, "waited for"]] * 2
    assert [gateway.told[2:] for gateway in gateways] == [[4]] * 2


def test_no_label_comes_back_where_the_change_fails_nor_where_nobody_counts() -> None:
    counted, uncounted = Gateway(3), Gateway(None)
    with pytest.raises(OSError, match="refit"), refitting([counted, uncounted]):
        raise OSError("refit failed")
    with refitting([counted, uncounted]):
        pass
    assert counted.told == [None, "waited for"]
    assert uncounted.told == []
