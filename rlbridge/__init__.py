"""Plug any verifiable environment into any RL trainer."""

from rlbridge.contracts.reward import FailureClass, Fault, InvalidReward, Reward, ValidReward
from rlbridge.errors import (
    ConfigError,
    ContractError,
    GymError,
    PluginError,
    RLBridgeError,
    RunError,
    UpstreamError,
)

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "ContractError",
    "FailureClass",
    "Fault",
    "GymError",
    "InvalidReward",
    "PluginError",
    "RLBridgeError",
    "Reward",
    "RunError",
    "UpstreamError",
    "ValidReward",
]
