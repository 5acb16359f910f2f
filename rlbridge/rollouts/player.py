"""Plays rollouts: by an agent's `/run`, or by a policy, an environment's tools and a judge.

What fails is an outcome with a reason, not an error.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from rlbridge.contracts import wire
from rlbridge.contracts.reward import FailureClass, Fault, InvalidReward
from rlbridge.errors import RLBridgeError
from rlbridge.evaluators.evaluator import Evaluator
from rlbridge.gateway.agent import Agent, AgentConfig, Policy
from rlbridge.gym import GymClient
from rlbridge.rollouts.failures import RolloutFailure
from rlbridge.rollouts.outcome import Outcome, failed, scored
from rlbridge.rollouts.tasks import Task


class Player(Protocol):
    """Plays rollouts, many at a time.

    Attributes:
        words: who plays, for people.
    """

    words: str

    async def play(self, task: Task) -> Outcome:
        """Play one rollout to its end; whatever fails is told in the outcome."""
        ...


class AgentPlayer:
    """Lets an agent's `/run` play: its own policy, tools and verdict.

    Args:
        gym: the client of the agent; whoever made it closes it.
        name: `agent_ref.name` of rows that have none.
    """

    def __init__(self, gym: GymClient, name: str) -> None:
        self._gym = gym
        self._name = name
        self.words = f"the agent at {gym.config.url}"

    async def play(self, task: Task) -> Outcome:
        """One `/run`."""
        asked = marked(task, self._name)
        try:
            reward, answer = await self._gym.run(asked)
        except RLBridgeError as error:
            return failed(asked, error)
        return scored({**asked, **answer, wire.AGENT_REF: asked[wire.AGENT_REF]}, reward)


class PolicyPlayer:
    """Asks a policy, answers its tool calls in the environment's session, has it judged.

    Args:
        policy: to be asked; whoever made these closes them.
        gym: the environment; None where an evaluator judges answers without tools.
        evaluator: judges instead of the environment; None for none.
        limits: how long a rollout may get.
        overrides: stand in place of the rows' own `responses_create_params`.
        name: `agent_ref.name` of rows that have none.
        words: what the policy is.
    """

    def __init__(
        self,
        policy: Policy,
        gym: GymClient | None,
        evaluator: Evaluator | None,
        limits: AgentConfig,
        overrides: Mapping[str, Any],
        name: str,
        words: str,
    ) -> None:
        self._policy = policy
        self._gym = gym
        self._evaluator = evaluator
        self._limits = limits
        self._overrides = overrides
        self._name = name
        self.words = words

    async def play(self, task: Task) -> Outcome:
        """One rollout in a session of its own."""
        params = {**task.row[wire.RESPONSES_CREATE_PARAMS], **self._overrides}
        row = {**marked(task, self._name), wire.RESPONSES_CREATE_PARAMS: params}
        agent = Agent(self._policy, gym=self._gym, evaluator=self._evaluator, config=self._limits)
        try:
            played = await agent.play(row)
        except RLBridgeError as error:
            return failed(row, error)
        if played.response.get("output"):
            row[wire.RESPONSE] = played.response
        if played.reward is None:
            why = "nobody judged the rollout"
            return scored(row, InvalidReward(FailureClass.MISSING_REWARD, why))
        return scored(row, played.reward)


async def play_within(player: Player, task: Task, timeout_s: float) -> Outcome:
    """Play one rollout, and give up after `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            return await player.play(task)
    except TimeoutError:
        why = f"the rollout was not done after {timeout_s:g} s; --rollout-timeout-s says how long"
        failure = RolloutFailure("rollout_timeout", Fault.INFRASTRUCTURE, why)
        return Outcome(dict(task.row), None, failure)


def marked(task: Task, name: str) -> dict[str, Any]:
    """The task's row with what Gym's tools know a rollout by."""
    indices = {wire.TASK_INDEX: task.key.task, wire.ROLLOUT_INDEX: task.key.rollout}
    return {wire.AGENT_REF: {"name": name}, **task.row, **indices}
