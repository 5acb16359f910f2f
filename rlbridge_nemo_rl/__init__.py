"""The NeMo-RL backend: what a NeMo-RL launcher and its YAML name.

`from rlbridge_nemo_rl import register` needs nemo_rl; importing the package alone doesn't, so that
`rlbridge_nemo_rl.plugin` loads where NeMo-RL isn't, and a worker that only unpickles a data loader
imports nothing but `rlbridge_nemo_rl.processor`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlbridge_nemo_rl.agent_servers import AgentServers
    from rlbridge_nemo_rl.all_sequences import AllSequences
    from rlbridge_nemo_rl.dataset import GymAgentDataset, GymDataset
    from rlbridge_nemo_rl.environment import GymEnvironment
    from rlbridge_nemo_rl.gym_gateway import GymGateway
    from rlbridge_nemo_rl.registration import register

__all__ = [
    "AgentServers",
    "AllSequences",
    "GymAgentDataset",
    "GymDataset",
    "GymEnvironment",
    "GymGateway",
    "register",
]

_HOMES = {
    "AgentServers": "rlbridge_nemo_rl.agent_servers",
    "AllSequences": "rlbridge_nemo_rl.all_sequences",
    "GymAgentDataset": "rlbridge_nemo_rl.dataset",
    "GymDataset": "rlbridge_nemo_rl.dataset",
    "GymEnvironment": "rlbridge_nemo_rl.environment",
    "GymGateway": "rlbridge_nemo_rl.gym_gateway",
    "register": "rlbridge_nemo_rl.registration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
