"""The async client of NeMo Gym reward servers, and a small server that speaks the same wire."""

from rlbridge.gym.client import GymClient
from rlbridge.gym.session import GymSession

__all__ = ["GymClient", "GymSession"]
