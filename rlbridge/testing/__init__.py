"""Fakes that stand at the HTTP edge, and the pytest plugin that hands them out.

Fixtures: `gym_mock` (respx, no socket) and `gym_server` (a real socket). Both answer as their
`behaviour` says: rewards by number, in turn or by function; faults by rate or by script.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlbridge.testing.behaviour import Behaviour
    from rlbridge.testing.builders import make_message, make_response, make_row, make_tool_call
    from rlbridge.testing.faults import FaultKind, Faults
    from rlbridge.testing.mock import GymMock
    from rlbridge.testing.server import GymServer

# By name, so that the plugin costs a pytest run nothing until a fixture is used.
_HOMES = {
    "Behaviour": "behaviour",
    "FaultKind": "faults",
    "Faults": "faults",
    "GymMock": "mock",
    "GymServer": "server",
    "make_message": "builders",
    "make_response": "builders",
    "make_row": "builders",
    "make_tool_call": "builders",
}

__all__ = [
    "Behaviour",
    "FaultKind",
    "Faults",
    "GymMock",
    "GymServer",
    "make_message",
    "make_response",
    "make_row",
    "make_tool_call",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
