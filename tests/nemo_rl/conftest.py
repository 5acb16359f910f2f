"""A real NeMo-RL on a CPU: Ray on loopback, Gym servers on sockets, policies without a GPU.

`make test-nemo-rl NEMO_RL=path` runs these with a checkout; elsewhere they skip and say so.
"""

import asyncio
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.templates import CHATML
from benchmarks.tokenizers import byte_bpe
from rlbridge.errors import PluginError
from rlbridge.testing import Behaviour, GymServer

ROOT = Path(__file__).resolve().parents[2]
HAVE_NEMO_RL = importlib.util.find_spec("nemo_rl") is not None


def pytest_report_header() -> list[str]:
    """Which NeMo-RL the tests run with."""
    if not HAVE_NEMO_RL:
        return []
    import nemo_rl

    return [f"NeMo-RL {nemo_rl.__version__} from {Path(str(nemo_rl.__file__)).parents[1]}"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if HAVE_NEMO_RL and item.get_closest_marker("nemo_rl") and (why := _why_refused()):
        pytest.skip(why)


@functools.cache
def _why_refused() -> str:
    """Why rlbridge doesn't work with this NeMo-RL; empty if it does."""
    from rlbridge_nemo_rl import versions

    try:
        versions.check()
    except PluginError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(
        reason="nemo_rl isn't importable here: make test-nemo-rl NEMO_RL=<clone of NVIDIA-NeMo/RL>"
    )
    for item in items:
        if item.get_closest_marker("nemo_rl") is None:
            continue
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # NeMo-RL's and its libraries' own
        if not HAVE_NEMO_RL:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    made = byte_bpe(CHATML)
    made.pad_token = "<|endoftext|>"
    return made


@pytest.fixture(scope="session")
def policy_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the tokenizer, as a policy's does."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of our own on loopback: NeMo-RL's `init_ray` would join any that it finds."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    import ray

    ray.init(
        address="local",
        num_cpus=8,  # logical
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=150_000_000,
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    yield
    ray.shutdown()
    del os.environ["RAY_ADDRESS"]


@pytest.fixture(scope="session")
def registered(cluster: None) -> None:
    """NeMo-RL as it is after `rlbridge_nemo_rl.register()`."""
    from rlbridge_nemo_rl import register

    register()


class Section(dict[str, Any]):
    """A section of NeMo-RL's config: a mapping up to 0.7, attributes in the head."""

    __getattr__ = dict.__getitem__


class Threaded:
    """A fake server on a loop of its own, for code that blocks."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._server.start())

    @property
    def url(self) -> str:
        return str(self._server.url)

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        self._run(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class ThreadedGym(Threaded):
    """A `GymServer` for code that blocks."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        super().__init__(GymServer(behaviour))


@pytest.fixture
def gym() -> Iterator[Callable[..., ThreadedGym]]:
    """Starts a Gym server that behaves as told."""
    started = []

    def start(**behaviour: Any) -> ThreadedGym:
        started.append(ThreadedGym(Behaviour(**behaviour)))
        return started[-1]

    yield start
    for server in started:
        server.close()
