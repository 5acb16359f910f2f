"""What `agent.loop: run` becomes on NeMo-RL: its own Gym path. Imports no NeMo-RL.

Gym's agents run already (`agent.servers`), or NeMo-RL starts them from Gym's own YAML
(`nemo_rl.env.nemo_gym.config_paths`). Whatever an agent decides by itself is no key of a run here.
"""

from typing import Any

from rlbridge.errors import ConfigError
from rlbridge.launch import idle
from rlbridge.run_config import RunConfig, flatten
from rlbridge_nemo_rl.gym_flags import FLAGS

DATASET = "rlbridge_nemo_rl.GymAgentDataset"
ENVIRONMENT = "nemo_gym"
PROCESSOR = "nemo_gym_data_processor"
DEFAULT_AGENT = "gym_agent"
"""Rows of running agents need no `agent_ref`; NeMo-RL files its metrics under this name."""

_STARTED = "env.nemo_gym.config_paths"


def agent_keys(config: RunConfig) -> dict[str, Any]:
    """Dotted keys beside those of every GRPO run, whose data they change."""
    servers = [server.model_dump(mode="json") for server in config.agent.servers]
    client = config.gym.model_dump(
        mode="json", exclude_defaults=True, include=set(idle.EVERY_CALL | idle.AGENTS)
    )
    return {
        **FLAGS,
        "env.nemo_gym": {},
        "rlbridge.agents": {"servers": servers, "client": client} if servers else {},
    }


def idle_keys(config: RunConfig) -> dict[str, str]:
    """Keys that do nothing where NeMo-RL starts Gym, and why."""
    if config.agent.servers:
        return {}
    why = f"NeMo-RL starts Gym here, by nemo_rl.{_STARTED}, and asks it itself; remove it"
    return dict.fromkeys(idle.keys_of("gym"), why)


def refuse(config: RunConfig) -> None:
    """Refuse what NeMo-RL's Gym path has no counterpart for.

    Raises:
        ConfigError: naming the key.
    """
    agent, native = config.agent, flatten(config.nemo_rl)
    rules = (
        (
            not agent.servers and not native.get(_STARTED),
            f"agent.servers: agent.loop=run needs Gym's agents: name those that run already, or "
            f"let NeMo-RL start Gym, by nemo_rl.{_STARTED}",
        ),
        (
            bool(agent.servers) and bool(native.get(_STARTED)),
            f"agent.servers and nemo_rl.{_STARTED}: Gym's agents run already or NeMo-RL starts "
            "them; remove one of the two",
        ),
        (
            agent.workers not in (1, max(1, len(agent.servers))),
            "agent.workers: on NeMo-RL each gateway_port of agent.servers has a process of its "
            "own; remove it, or set it to their number",
        ),
        (
            bool(native.get("env.nemo_gym.is_trajectory_collection")),
            "nemo_rl.env.nemo_gym.is_trajectory_collection: that is NeMo-RL's own script's, and "
            "`rlbridge run` trains; remove it",
        ),
    )
    for broken, message in rules:
        if broken:
            raise ConfigError(message)
