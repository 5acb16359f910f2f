"""Fakes that stand at the HTTP edge, and the pytest plugin that hands them out.

`VllmServer` is a vLLM without a model on a real socket, `ByteTokenizer` its tokenizer.

Fixtures: `gym_mock` (respx, no socket), `gym_server` and `vllm_server` (real sockets). The Gyms
answer as their `behaviour` says: rewards by number, in turn or by function; faults by rate or by
script.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlbridge.testing.behaviour import Behaviour
    from rlbridge.testing.builders import make_message, make_response, make_row, make_tool_call
    from rlbridge.testing.byte_tokenizer import ByteTokenizer
    from rlbridge.testing.faults import FaultKind, Faults
    from rlbridge.testing.mock import GymMock
    from rlbridge.testing.server import GymServer
    from rlbridge.testing.vllm_model import FakeModel
    from rlbridge.testing.vllm_nemo_rl import Exact
    from rlbridge.testing.vllm_parts import Parsers
    from rlbridge.testing.vllm_requests import EngineFault
    from rlbridge.testing.vllm_server import VllmServer

# By name, so that the plugin costs a pytest run nothing until a fixture is used.
_HOMES = {
    "Behaviour": "behaviour",
    "ByteTokenizer": "byte_tokenizer",
    "EngineFault": "vllm_requests",
    "Exact": "vllm_nemo_rl",
    "FakeModel": "vllm_model",
    "FaultKind": "faults",
    "Faults": "faults",
    "GymMock": "mock",
    "GymServer": "server",
    "Parsers": "vllm_parts",
    "VllmServer": "vllm_server",
    "make_message": "builders",
    "make_response": "builders",
    "make_row": "builders",
    "make_tool_call": "builders",
}

__all__ = [
    "Behaviour",
    "ByteTokenizer",
    "EngineFault",
    "Exact",
    "FakeModel",
    "FaultKind",
    "Faults",
    "GymMock",
    "GymServer",
    "Parsers",
    "VllmServer",
    "make_message",
    "make_response",
    "make_row",
    "make_tool_call",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
