"""A verl agent loop for any Gym agent: its `/run` plays the rollout, our gateway is its policy.

In a verl config::

    actor_rollout_ref.rollout.agent.default_agent_loop=nemo_gym_run
    actor_rollout_ref.rollout.agent.agent_loop_config_path=<rlbridge_verl>/agent_loops.yaml
    +reward.nemo_gym.agents=[{url: http://127.0.0.1:8001, gateway_port: 8100}]

The agent's model server (NeMo Gym's vllm_model) has `base_url: http://127.0.0.1:8100/v1`. The
reward is the one `/run` answers. Every call the agent made becomes part of a training sequence:
several a rollout where the agent branched or rewrote its history.
"""

import time
import uuid
from typing import Any

from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from rlbridge.contracts.reward import Reward
from rlbridge.contracts.rollout import FinishReason, Rollout
from rlbridge.errors import EngineError
from rlbridge.onpolicy.build import Built, build
from rlbridge_verl.calls import ServerCalls
from rlbridge_verl.policy_server import policy_server_of, row_in_session
from rlbridge_verl.scoring import ENGINE_FAILED, Origin, tell_sampler
from rlbridge_verl.trajectory import outputs_of
from rlbridge_verl.worker import Worker, worker_of


class NeMoGymRunAgentLoop(AgentLoopBase):
    """Calls a Gym agent's `/run` and trains on what it asked the policy; see the module.

    `actor_rollout_ref.rollout.response_length` bounds each answer, and each training sequence
    from its first sampled token on: what lies behind is cut off and reported as
    `gym/cut_tokens`.
    """

    def __init__(self, *args: Any, tools: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._worker: Worker = worker_of(self.config, self.tokenizer)

    async def run(self, sampling_params: dict[str, Any], **fields: Any) -> list[AgentLoopOutput]:
        """Run one rollout.

        Args:
            sampling_params: verl's; they win over the agent's.
            **fields: the row's columns.

        Returns:
            Its trajectories, the same reward on each.

        Raises:
            InvalidRewardError: it has no reward; verl leaves it out of the batch.
            EngineError: nothing was sampled that could be trained.
        """
        origin = Origin.of(fields)
        reward, rollout, metrics = await self._play(origin, sampling_params)
        settled = await self._worker.scorer.settle(reward, origin)
        outputs = self._outputs(rollout, metrics)
        if not outputs:
            await tell_sampler(origin, ENGINE_FAILED)
            raise EngineError(
                f"row {origin.index}: /run gave a reward, and no call reached the policy in this "
                f"rollout's session; is the agent's model server at the gateway's port?"
            )
        for output in outputs:
            output.reward_score = settled["reward_score"]
            output.extra_fields["reward_extra_info"] = settled["reward_extra_info"] | _figures(
                rollout, outputs
            )
        return outputs

    async def _play(
        self, origin: Origin, sampling_params: dict[str, Any]
    ) -> tuple[Reward, Rollout, AgentLoopMetrics]:
        """Have the agent run the row in a session of the gateway, which is closed in any case."""
        server = await policy_server_of(self._worker, self.tokenizer)
        session = await server.gateway.open_session(uuid.uuid4().hex, group_id=origin.uid)
        calls = ServerCalls(
            self.server_manager,
            session,
            self._worker.ends,
            sampling_params,
            self._worker.max_model_len,
        )
        server.engine.open(session, calls, self._worker.limits.response_tokens)
        began = time.monotonic()
        try:
            reward, _ = await server.agent.run(row_in_session(origin.row, session))
            rollout = await server.gateway.rollout(session)
        finally:
            preempted = server.engine.close(session)
            await server.gateway.end_session(session)
        metrics = AgentLoopMetrics(
            generate_sequences=time.monotonic() - began, num_preempted=preempted
        )
        return reward, rollout, metrics

    def _outputs(self, rollout: Rollout, metrics: AgentLoopMetrics) -> list[AgentLoopOutput]:
        if not rollout.turns or rollout.masked is not None:
            return []
        built: Built = build(rollout)
        return outputs_of(
            built.sequences,
            response_length=self._worker.limits.response_tokens,
            num_turns=2 * len(rollout.turns),
            metrics=metrics,
        )


def _figures(rollout: Rollout, outputs: list[AgentLoopOutput]) -> dict[str, float]:
    last = rollout.turns[-1]
    return {
        "gym/turns": float(len(rollout.turns)),
        "gym/truncated": float(last.finish is FinishReason.LENGTH),
        "gym/trajectories": float(len(outputs)),
        "gym/cut_tokens": float(sum(output.extra_fields["cut_tokens"] for output in outputs)),
    }
