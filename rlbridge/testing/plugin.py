"""The pytest plugin (`pytest11` entry point): fixtures for code that talks to a Gym or a vLLM.

Loaded by every pytest run of whoever has rlbridge installed, so it imports nothing but pytest;
a fixture imports what it needs when it is asked for.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rlbridge.testing.mock import GymMock
    from rlbridge.testing.server import GymServer
    from rlbridge.testing.vllm_server import VllmServer


@pytest.fixture
def gym_mock() -> "Iterator[GymMock]":
    """A mocked Gym server for httpx: `GymClient(gym_mock.config())`; see `GymMock`."""
    from rlbridge.testing.mock import GymMock

    mock = GymMock()
    with mock.router:
        yield mock


def _async_fixture() -> object:
    """pytest-asyncio's decorator where it is installed; plain pytest can't run async fixtures."""
    try:
        import pytest_asyncio
    except ImportError:
        return pytest.fixture
    return pytest_asyncio.fixture


async def _gym_server() -> "AsyncIterator[GymServer]":
    """A Gym server on a real socket of this process, for either transport; see `GymServer`."""
    from rlbridge.testing.server import GymServer

    async with GymServer() as server:
        yield server


gym_server = _async_fixture()(_gym_server)  # type: ignore[operator]


async def _vllm_server() -> "AsyncIterator[VllmServer]":
    """A vLLM without a model on a real socket of this process; see `VllmServer`."""
    from rlbridge.testing.vllm_server import VllmServer

    async with VllmServer() as server:
        yield server


vllm_server = _async_fixture()(_vllm_server)  # type: ignore[operator]
