"""Gym's agents that run already, on NeMo-RL's Gym path, and the gateways that they ask.

In a launcher of NeMo-RL's Gym path, behind `setup_nemo_gym_config` and before `setup`::

    servers = [{"url": "http://127.0.0.1:8001", "gateway_port": 8100}]
    register(gateway=AgentServers.of(config, Path("runs/gym"), servers))

The model server of the agent at 8001 asks `http://127.0.0.1:8100/v1`, where our gateway listens.
Servers that name the same port share a gateway. All of them are the same agent: a row goes to any.
"""

import contextlib
import functools
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rlbridge.config import GymConfig
from rlbridge.errors import ConfigError
from rlbridge.run_config import AgentServer
from rlbridge_nemo_rl.actor_behind import ActorBehind
from rlbridge_nemo_rl.agent_rewards import LEDGER
from rlbridge_nemo_rl.gym_calls import AGENTS, CLIENT, GATEWAY
from rlbridge_nemo_rl.gym_gateway import GymGateway
from rlbridge_nemo_rl.refits import refitting

MODEL = "policy"
"""The name by which the agents' model servers ask for the policy; the same as on verl."""
_URLS = {"url", "urls", "headers"}


class AgentServers:
    """Agents, a gateway at each port that they ask, and the client that posts `/run`.

    Args:
        folder: for the gateways' configs, logs and captured calls, `gateway-<port>` each.
        servers: the agents.
        gateways: by their ports.
        client: deadlines and limits of `/run`; its URLs and headers aren't used.
        ledger: folder of the record of every reward.
    """

    def __init__(
        self,
        folder: Path,
        servers: Iterable[AgentServer],
        gateways: Mapping[int, GymGateway],
        client: GymConfig,
        ledger: Path,
    ) -> None:
        self.folder = folder
        self._servers = tuple(servers)
        self._gateways = dict(gateways)
        self._client = client
        self._ledger = ledger
        self._started = False

    @classmethod
    def of(
        cls,
        config: Any,
        folder: Path,
        servers: Iterable[Mapping[str, Any]],
        *,
        client: Mapping[str, Any] | None = None,
        ledger: Path | None = None,
    ) -> Self:
        """What a NeMo-RL config needs to roll out by these agents.

        Args:
            config: the `MasterConfig`, as it is behind `setup_nemo_gym_config`.
            folder: see above.
            servers: of each agent its `url`, and the `gateway_port` that its model server asks.
            client: keys of `gym` in docs/reference/config.md.
            ledger: None for `rewards` in `folder`.

        Raises:
            ConfigError: a flag that the Gym path needs is missing, by its name; a key of a server
                or of the client is wrong.
        """
        parsed = [AgentServer.parse(server, where="agent.servers") for server in servers]
        record = (ledger or folder / "rewards").resolve()
        gateways = {
            port: GymGateway.of(
                config, folder / f"gateway-{port}", ledger=record, called=MODEL, port=port
            )
            for port in sorted({server.gateway_port for server in parsed})
        }
        return cls(
            folder.resolve(), parsed, gateways, GymConfig.parse(client or {}, where="gym"), record
        )

    def start(self) -> None:
        """Start the gateways; once, whatever the number of calls.

        Raises:
            ConfigError: a port is taken.
        """
        if not self._started:
            for port in self._gateways:
                _refuse_taken(port)
        self._started = True
        for gateway in self._gateways.values():
            gateway.start()

    def stop(self) -> None:
        """End the gateways; captured calls stay, and the agents run on."""
        for gateway in self._gateways.values():
            gateway.stop()

    @contextlib.contextmanager
    def serving(
        self, urls: Callable[[], Sequence[str | None]], weights: int | None = None
    ) -> Iterator[None]:
        """Let every gateway ask the engines while this is open; see `GymGateway.serving`."""
        with contextlib.ExitStack() as stack:
            for gateway in self._gateways.values():
                stack.enter_context(gateway.serving(urls, weights))
            yield

    @contextlib.contextmanager
    def refitting(self) -> Iterator[None]:
        """Around a change of the weights while agents play; see `refits.refitting`."""
        with refitting(self._gateways.values()):
            yield

    def around(self, rollout: Callable[..., Any]) -> Callable[..., Any]:
        """NeMo-RL's Gym rollout, with its engines known to every gateway while it runs."""
        return functools.reduce(
            lambda inner, gateway: gateway.around(inner), self._gateways.values(), rollout
        )

    def actor(self) -> Any:
        """What `setup` is to make in the place of NeMo-RL's Gym actor."""
        from rlbridge_nemo_rl.running_agents import RunningAgents

        return ActorBehind(self, RunningAgents)

    def actor_config(self) -> dict[str, Any]:
        """What that actor is told beside NeMo-RL's own config."""
        return {
            "base_urls": [],
            AGENTS: [
                {"url": server.url, GATEWAY: self._gateways[server.gateway_port].url}
                for server in self._servers
            ],
            CLIENT: self._client.model_dump(mode="json", exclude=_URLS, exclude_defaults=True),
            LEDGER: str(self._ledger),
        }


def _refuse_taken(port: int) -> None:
    """The gateway itself would find out when the engines are there, minutes later."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"agent.servers: gateway_port {port} is taken ({error.strerror}); end what listens "
                "there, or name another port here and in the agent's model server"
            ) from error
