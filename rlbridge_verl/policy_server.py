"""The gateway inside an agent loop worker, where a Gym agent's model server finds the policy.

One a worker process, on loopback, at a fixed port: NeMo Gym's model servers know their policy's
URL from a config, not from a call. What is said per call is `responses_create_params.metadata`:
Gym's simple_agent and vllm_model (0.4.0) hand it through to `/v1/chat/completions`, so a rollout's
session travels there.
"""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import ray
import uvicorn

from rlbridge.contracts.wire import RESPONSES_CREATE_PARAMS
from rlbridge.errors import ConfigError
from rlbridge.gateway.app import create_app
from rlbridge.gateway.config import GatewayConfig, SessionsConfig
from rlbridge.gateway.gateway import Gateway
from rlbridge.gym import GymClient
from rlbridge_verl.engine import VerlEngine
from rlbridge_verl.settings import AgentAddress
from rlbridge_verl.worker import Worker

SESSION_KEY = "rlbridge_session"
"""Where the gateway looks for a rollout's session in `metadata`."""
MODEL = "policy"


class PolicyServer:
    """A gateway over verl's engine, and the client of the agent that asks it.

    Args:
        worker: what the process's agent loops share.
        agent: the agent's URL and the port its model server asks.
        tokenizer: the policy's.
    """

    def __init__(self, worker: Worker, agent: AgentAddress, tokenizer: Any) -> None:
        self.engine = VerlEngine(tokenizer, model=MODEL, max_model_len=worker.max_model_len)
        config = GatewayConfig(
            sessions=SessionsConfig(implicit=False, cookie=False),
            stop_token_ids=tuple(sorted(worker.ends)),
            abort_attempts=1,  # verl's own client resumes
            template_options=worker.bridge.template.options,
        )
        self.gateway = Gateway(self.engine, tokenizer, config)
        fields = worker.section.client_config("").model_dump(exclude={"headers"})
        self.agent = GymClient(**{**fields, "url": agent.url, "urls": ()})
        self._port = agent.gateway_port
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen and serve, in the running loop, for as long as the process lives.

        Raises:
            ConfigError: the port is taken.
        """
        app = create_app(self.gateway)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self._port))
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"reward.nemo_gym.agents: port {self._port} is taken: {error.strerror}; each "
                "agent loop worker of a node needs a gateway_port of its own"
            ) from error
        await self.gateway.__aenter__()
        config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_keep_alive=30)
        server = uvicorn.Server(config)
        self._task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            if self._task.done():
                self._task.result()
                raise ConfigError(f"the gateway on port {self._port} did not start")
            await asyncio.sleep(0.01)


def row_in_session(row: Mapping[str, Any], session: str) -> dict[str, Any]:
    """`row` with the session in its `responses_create_params.metadata`."""
    params = dict(row.get(RESPONSES_CREATE_PARAMS) or {})
    params["metadata"] = {**(params.get("metadata") or {}), SESSION_KEY: session}
    return {**row, RESPONSES_CREATE_PARAMS: params}


def agent_of_this_worker(agents: tuple[AgentAddress, ...]) -> AgentAddress:
    """The agent that belongs to this agent loop worker, by the number in its Ray name.

    Raises:
        ConfigError: there are fewer agents than workers.
    """
    # Outside an actor, asking would start a Ray of its own, on every interface.
    own = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else None
    name = own or "agent_loop_worker_0"
    number = int(name.removeprefix("agent_loop_worker_").partition("_")[0])
    if number >= len(agents):
        raise ConfigError(
            f"reward.nemo_gym.agents has {len(agents)} entries, and this is agent loop worker "
            f"{number}; give every worker (rollout.agent.num_workers) an agent of its own"
        )
    return agents[number]


_servers: dict[int, asyncio.Task[PolicyServer]] = {}


async def policy_server_of(worker: Worker, tokenizer: Any) -> PolicyServer:
    """The process's policy server, started on first use; all rollouts wait for the same start."""

    async def started() -> PolicyServer:
        server = PolicyServer(worker, agent_of_this_worker(worker.section.agents), tokenizer)
        await server.start()
        return server

    if id(worker) not in _servers:
        _servers[id(worker)] = asyncio.create_task(started())
    return await asyncio.shield(_servers[id(worker)])
