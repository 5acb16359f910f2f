"""Gym's agents that run already, as NeMo-RL's Gym actor: posts each row to an agent's `/run`.

Made by `setup` in the place of NeMo-RL's actor, in the launcher's Python environment. Starts no
Gym. Rollouts go round the servers in turn, from one batch to the next, of which async GRPO has many
small ones: the servers are the same agent several times. `/run` is never sent twice, for nobody
knows what the first one did.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import ray

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import FailureClass, InvalidReward
from rlbridge.gym import GymClient
from rlbridge_nemo_rl.agent_rewards import is_result
from rlbridge_nemo_rl.gym_agents import Played, _Gym
from rlbridge_nemo_rl.gym_calls import AGENTS, CLIENT, GATEWAY, Calls

_ROW_INDEX = "_rowidx"  # NeMo-RL's own; no agent's business


class _RunningAgents(_Gym):  # type: ignore[misc,valid-type]
    """`NemoGym` without a Gym of its own."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._agents = [
            (GymClient(GymConfig.parse({**cfg[CLIENT], "url": agent["url"]})), agent[GATEWAY])
            for agent in cfg[AGENTS]
        ]
        self._turns = itertools.cycle(range(len(self._agents)))

    async def _spinup(self) -> None:
        """See that each agent answers.

        Raises:
            GymError: nobody does at an agent's URL.
        """
        for client, _ in self._agents:
            await client.check_alive()

    async def _play(self, rows: Sequence[Mapping[str, Any]]) -> AsyncIterator[Played]:
        calls = [Calls(gateway) for _, gateway in self._agents]
        tasks = [
            asyncio.create_task(self._run(number, row, next(self._turns), calls))
            for number, row in enumerate(rows)
        ]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for running in tasks:
                running.cancel()
            for sessions in calls:
                await sessions.forget()

    async def _run(
        self, number: int, row: Mapping[str, Any], at: int, calls: Sequence[Calls]
    ) -> Played:
        asked = calls[at].in_session(row)
        asked.pop(_ROW_INDEX, None)
        reward, answer = await self._agents[at][0].run(asked)
        if isinstance(reward, InvalidReward):
            return Played(number, reward, answer)
        if not is_result(answer):
            detail = "the agent's answer has no $.response.output"
            return Played(number, InvalidReward(FailureClass.MALFORMED_BODY, detail), answer)
        return Played(number, reward, answer, await calls[at].of(asked))

    async def shutdown(self) -> None:
        """Close all connections; the agents run on."""
        self._ended = True
        for client, _ in self._agents:
            await client.aclose()


RunningAgents = ray.remote(max_restarts=-1, max_task_retries=0)(_RunningAgents)
