"""Scores rollouts again without new inference; what they were worth before stays beside.

A row's response is judged anew and its earlier verdict is kept in `_rlbridge_previous_rewards`.
Refuses, unless told, an environment that says its verdicts need the session the rollout had; with
`replay` the rollout's tool calls are made again in a fresh session, and a tool that answers
otherwise than it did makes the reward invalid.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import orjson

from rlbridge.contracts import wire
from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward
from rlbridge.errors import ConfigError, ContractError, GymError
from rlbridge.evaluators.evaluator import Evaluator
from rlbridge.gym import GymClient
from rlbridge.gym.failures import invalid_reward
from rlbridge.gym.replies import read_json
from rlbridge.gym.session import GymSession
from rlbridge.gym.tools import answer_calls
from rlbridge.rollouts.outcome import FAILURE_FIELDS, REWARD_FIELDS, Outcome, scored
from rlbridge.rollouts.tasks import Task
from rlbridge.transforms.conversation import output_of, reward_of
from rlbridge.transforms.rejects import BadRowError

_ROUTE_REVERIFY: Final = "/reverify_mode"
_CHANGE: Final = 1e-9


class Rescorer:
    """Judges finished rollouts; a `Player` that plays nothing.

    Args:
        judge: an evaluator, or the client of a resources server.
        replay: make the rollout's tool calls again in a session first; `judge` is a client then.
        words: who judges.

    Attributes:
        verdicts: how many rows changed how, by (before, after).
    """

    def __init__(self, judge: Evaluator, words: str, *, replay: bool = False) -> None:
        self._judge = judge
        self._replay = replay
        self.words = words
        self.verdicts: Counter[tuple[str, str]] = Counter()

    async def play(self, task: Task) -> Outcome:
        """The row with its new verdict, and the old one beside it."""
        row = task.row
        try:
            items = output_of(dict(row))
            reward = await self._judged(row, items)
        except (BadRowError, ContractError) as error:
            reward = InvalidReward(FailureClass.BAD_ROW, str(error))
        dropped = {*REWARD_FIELDS, *FAILURE_FIELDS}
        bare = {key: value for key, value in row.items() if key not in dropped}
        bare[wire.PREVIOUS_REWARDS] = [*(row.get(wire.PREVIOUS_REWARDS) or ()), verdict_of(row)]
        return scored(bare, reward)

    async def _judged(self, row: Mapping[str, Any], items: list[Any]) -> Reward:
        asked = {key: value for key, value in row.items() if key not in _NOT_ASKED}
        given = row.get(wire.RESPONSE)
        response = given if isinstance(given, Mapping) and "output" in given else items
        if not self._replay or not isinstance(self._judge, GymClient):
            return await self._judge.verify(asked, response)
        session = self._judge.session(asked)
        try:
            async with session:
                await _replay(session, items)
                return await session.verify(response)
        except GymError as error:
            return invalid_reward(error, lost=session.lost)

    def count(self, row: Mapping[str, Any], outcome: Outcome) -> None:
        """Count how a row that was kept has changed."""
        before = reward_of(dict(row))
        self.verdicts[_kind(before, None), _kind(outcome.reward, before)] += 1


def verdict_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its reward, to be kept beside a new one."""
    kept = {name: row[name] for name in (*REWARD_FIELDS, *FAILURE_FIELDS) if name in row}
    return kept or {wire.REWARD: None}


async def refuse_stateful(gym: GymClient, *, force: bool) -> str:
    """What the environment says of judging again (`/reverify_mode`, nemo-gym 0.5.0 and later).

    Raises:
        ConfigError: it says that its verdicts need the rollout's own session.
    """
    try:
        mode = await gym.get_json(_ROUTE_REVERIFY, read_json)
    except GymError:
        return "unknown"
    if mode == "unsupported" and not force:
        raise ConfigError(
            f"{gym.config.url} says that it can't judge a finished rollout again: its verdicts "
            "need the session the rollout had. Add --replay to make the tool calls again in a "
            "fresh session, or --force if you know better"
        )
    return str(mode)


async def _replay(session: GymSession, items: list[Any]) -> None:
    """Make the rollout's tool calls again, and hold the answers against the recorded ones.

    Raises:
        ContractError: a tool answers otherwise than it did.
    """
    told = {
        item.get("call_id"): item.get("output")
        for item in items
        if isinstance(item, Mapping) and item.get("type") == "function_call_output"
    }
    for item in items:
        if not isinstance(item, Mapping) or item.get("type") != "function_call":
            continue
        if item.get("call_id") not in told:
            continue  # the rollout ended before it was made
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        [answer] = await answer_calls(session, [{"id": item["call_id"], "function": function}])
        if _same(answer["content"], told[item["call_id"]]):
            continue
        raise ContractError(
            f"the tool {item.get('name')} answers otherwise than in the rollout; this "
            "environment's state can't be had again"
        )


def _same(now: str, then: Any) -> bool:
    """Whether two answers say the same; JSON may be spaced differently."""
    if now == then:
        return True
    try:
        return bool(orjson.loads(now) == (orjson.loads(then) if isinstance(then, str) else then))
    except orjson.JSONDecodeError:
        return False


# Of an earlier verdict or of us: no verifier is asked with it.
_NOT_ASKED: Final = frozenset(
    {wire.RESPONSE, "output", wire.PREVIOUS_REWARDS, *REWARD_FIELDS, *FAILURE_FIELDS}
)


def _kind(reward: float | None, before: float | None) -> str:
    if reward is None:
        return "invalid"
    if before is None:
        return "valid"
    change = reward - before
    return "same" if abs(change) <= _CHANGE else "higher" if change > 0 else "lower"
