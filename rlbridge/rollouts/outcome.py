"""What became of one rollout: a row as NeMo Gym writes it, or the reason why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlbridge.contracts import wire
from rlbridge.contracts.reward import Fault, Reward, ValidReward
from rlbridge.errors import EngineError, GymError, RLBridgeError
from rlbridge.rollouts.failures import RolloutFailure

# What a row says of a reward; none of it outlives the reward it belongs to.
REWARD_FIELDS: Final = (wire.REWARD, wire.REWARD_COMPONENTS, wire.MASK_SAMPLE)
FAILURE_FIELDS: Final = (
    wire.FAILURE_CLASS,
    wire.FAILURE_TERMINAL,
    wire.FAILURE_DETAIL,
    wire.FAILURE_STATUS,
    wire.FAILURE_REPORTED,
    wire.JUDGE_ERROR,
    wire.ROLLOUT_ATTEMPTS,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One rollout, played.

    Attributes:
        row: what goes into the output, or beside the failure: the input row, the response as far
            as there is one, the verifier's fields.
        reward: the valid reward; None where there is a failure.
        failure: why there is no valid reward; None where there is one.
        tokens: how many tokens the policy sampled, as far as it said.
        traced: whether every call of the policy has its token fields.
    """

    row: dict[str, Any]
    reward: float | None
    failure: RolloutFailure | None
    tokens: int = 0
    traced: bool = False


def scored(row: Mapping[str, Any], reward: Reward) -> Outcome:
    """The outcome of a rollout that has its response (`row["response"]`) and was judged."""
    response = row.get(wire.RESPONSE)
    output = response.get("output") if isinstance(response, Mapping) else None
    tokens, traced = _sampled(output if isinstance(output, list) else (), response)
    bare = {key: value for key, value in row.items() if key not in FAILURE_FIELDS}
    if isinstance(reward, ValidReward):
        return Outcome({**bare, **_reward_fields(reward)}, reward.value, None, tokens, traced)
    for name in REWARD_FIELDS:
        bare.pop(name, None)
    return Outcome(bare, None, RolloutFailure.of(reward), tokens, traced)


def failed(row: Mapping[str, Any], error: RLBridgeError) -> Outcome:
    """The outcome of a rollout that `error` ended before it was judged."""
    return Outcome(dict(row), None, failure_of(error))


def failure_of(error: RLBridgeError) -> RolloutFailure:
    """Which failure an error amounts to, and whether trying again may help."""
    words = str(error)
    status = getattr(error, "status", None) or None
    if isinstance(error, GymError):
        return RolloutFailure("environment_failed", Fault.INFRASTRUCTURE, words, status)
    if isinstance(error, EngineError) and error.retryable:
        return RolloutFailure("policy_unavailable", Fault.INFRASTRUCTURE, words, status)
    if status in _REFUSALS:
        return RolloutFailure("policy_refused", Fault.DATA, words, status)
    return RolloutFailure("policy_failed", Fault.INFRASTRUCTURE, words, status)


# Of the row, and the same the next time; 401, 403, 404 and 429 are about the server.
_REFUSALS: Final = frozenset({400, 409, 413, 422})


def _reward_fields(reward: ValidReward) -> dict[str, Any]:
    fields: dict[str, Any] = {wire.REWARD: reward.value}
    if reward.components:
        fields[wire.REWARD_COMPONENTS] = dict(reward.components)
    if reward.mask_sample:
        fields[wire.MASK_SAMPLE] = True
    return fields


def _sampled(output: Sequence[Any], response: Any) -> tuple[int, bool]:
    """How many tokens were sampled, and whether the IDs of all calls are there."""
    traced = [
        len(item[wire.GENERATION_TOKEN_IDS])
        for item in output
        if isinstance(item, Mapping) and item.get(wire.GENERATION_TOKEN_IDS)
    ]
    usage = response.get("usage") if isinstance(response, Mapping) else None
    counted = usage.get("output_tokens") if isinstance(usage, Mapping) else None
    sampled = sum(traced)
    if isinstance(counted, int):
        return counted, bool(traced) and sampled >= counted
    return sampled, bool(traced)
