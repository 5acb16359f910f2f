import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rlbridge.config import GymConfig
from rlbridge.testing.real_servers import running_nemo_gym, why_unavailable

CAPTURES = Path(__file__).parent / "captures"
TRANSPORTS = ("aiohttp", "httpx")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def quick_config(transport: str) -> Any:
    """A config for one transport whose waits are short enough for tests."""

    def config(url: str, **fields: Any) -> GymConfig:
        quick = {
            "backoff_initial_s": 0.005,
            "backoff_max_s": 0.05,
            "outage_patience_s": 0.0,
            "breaker_probe_s": 0.02,
            "verify_timeout_s": 60.0,
        }
        return GymConfig(**{"url": url, "transport": transport, **quick, **fields})

    return config


@pytest.fixture(scope="session")
def nemo_gym_server() -> Iterator[Any]:
    """Starts real NeMo Gym servers by name, each once a session: `nemo_gym_server("mcqa")`."""
    if why_unavailable():
        pytest.skip(why_unavailable())
    with ExitStack() as stack:
        urls: dict[str, str] = {}

        def url_of(name: str) -> str:
            if name not in urls:
                urls[name] = stack.enter_context(running_nemo_gym(name))
            return urls[name]

        yield url_of


@pytest.fixture
def ray() -> Iterator[Any]:
    """A Ray of two cores on loopback."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray imports what others have deprecated
        ray = pytest.importorskip("ray", reason="the verl extra is not installed: make setup")
        ray.init(
            num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False
        )
        yield ray
        ray.shutdown()


@pytest.fixture
def capture() -> Any:
    """A captured request/response pair by name."""

    def load(name: str) -> dict[str, Any]:
        return json.loads((CAPTURES / f"{name}.json").read_text())

    return load
