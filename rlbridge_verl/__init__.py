"""The verl backend: what a verl config names, by the names it uses.

`from rlbridge_verl import NeMoGymReward` needs verl; importing the package alone doesn't, so that
`rlbridge_verl.plugin` loads where verl isn't installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlbridge_verl.agent_loop import NeMoGymAgentLoop
    from rlbridge_verl.dataset import NeMoGymDataset
    from rlbridge_verl.reward import NeMoGymReward, nemo_gym_score
    from rlbridge_verl.run_loop import NeMoGymRunAgentLoop
    from rlbridge_verl.sampler import ValidRewardSampler, ValidRewardSamplerAsync

__all__ = [
    "NeMoGymAgentLoop",
    "NeMoGymDataset",
    "NeMoGymReward",
    "NeMoGymRunAgentLoop",
    "ValidRewardSampler",
    "ValidRewardSamplerAsync",
    "nemo_gym_score",
]

_HOMES = {
    "NeMoGymAgentLoop": "rlbridge_verl.agent_loop",
    "NeMoGymDataset": "rlbridge_verl.dataset",
    "NeMoGymReward": "rlbridge_verl.reward",
    "NeMoGymRunAgentLoop": "rlbridge_verl.run_loop",
    "ValidRewardSampler": "rlbridge_verl.sampler",
    "ValidRewardSamplerAsync": "rlbridge_verl.sampler",
    "nemo_gym_score": "rlbridge_verl.reward",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
