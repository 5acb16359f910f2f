"""The rewards of rollouts that Gym's agents made: recorded as they come, and counted.

Runs in the Gym actor, also in NeMo-RL's environment for Gym: imports only what is there.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlbridge.contracts import wire
from rlbridge.contracts.reward import (
    FailureClass,
    InvalidReward,
    Reward,
    ValidReward,
    is_reward,
)
from rlbridge.ledger import RewardLedger
from rlbridge_nemo_rl.processor import INDEX, SPLIT

LEDGER = "rlbridge_ledger"
"""Key of our Gym actor's config: folder of the record of rewards."""
ORIGIN = "rlbridge_origin"
"""Key of a row: its index and split. Agents don't get it."""


class RolloutRewards:
    """The rewards of one batch of rollouts.

    Args:
        ledger: the record of every reward; None keeps none.
        step: the training step that asks.
        rows: the batch's rows, a row once for each of its samples.
    """

    def __init__(
        self, ledger: RewardLedger | None, step: int, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        self._ledger = ledger
        self._step = step
        self._origins = [row.get(ORIGIN) or {} for row in rows]
        self._counts: Counter[str] = Counter(valid=0, invalid=0)

    def note(self, number: int, reward: Reward) -> None:
        """Record and count the reward of the rollout `number` of the batch."""
        if isinstance(reward, ValidReward):
            self._counts["valid"] += 1
            self._counts["masked_by_environment"] += reward.mask_sample
        else:
            self._counts["invalid"] += 1
            self._counts[f"invalid/{reward.failure}"] += 1
        if self._ledger is None:
            return
        indices = [int(origin.get(INDEX, -1)) for origin in self._origins[: number + 1]]
        row = indices[-1]
        self._ledger.record(
            reward,
            step=self._step,
            row=row,
            uid=str(row),
            sample=indices.count(row) - 1,
            split=str(self._origins[number].get(SPLIT, "train")),
        )

    def metrics(self) -> dict[str, float]:
        """`gym/valid`, `gym/invalid`, `gym/invalid/<class>`, `gym/masked_by_environment`."""
        return {f"gym/{name}": float(count) for name, count in self._counts.items()}


def reward_of(result: Any) -> Reward:
    """The reward in an agent's answer, as Gym's collector hands it over.

    Returns:
        An `InvalidReward` where the answer is no result, or has no reward that somebody computed.
    """
    if not is_result(result):
        detail = f"the agent's answer is no result: {str(result)[:200]}"
        return InvalidReward(FailureClass.MALFORMED_BODY, detail)
    reported = result.get(wire.FAILURE_CLASS)
    if reported:
        detail = f"the environment reports a failure: {reported}"
        return InvalidReward(FailureClass.REPORTED, detail, reported=str(reported))
    reward = result.get(wire.REWARD)
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        return InvalidReward(FailureClass.MISSING_REWARD, f"$.reward is {reward!r}, no number")
    if not is_reward(reward):
        return InvalidReward(FailureClass.NON_FINITE, f"$.reward is {reward!r}")
    return ValidReward(float(reward), mask_sample=masked(result))


def is_result(answer: Any) -> bool:
    """Whether an agent's answer tells what was said (`$.response.output`)."""
    response = answer.get(wire.RESPONSE) if isinstance(answer, Mapping) else None
    return isinstance(response, Mapping) and isinstance(response.get("output"), list)


def masked(result: Mapping[str, Any]) -> bool:
    """Whether the environment asks to keep this sample out of the loss."""
    inner = result.get(wire.INSTANCE_CONFIG)
    places = (result, inner) if isinstance(inner, Mapping) else (result,)
    return any(place.get(wire.MASK_SAMPLE) is True for place in places)
