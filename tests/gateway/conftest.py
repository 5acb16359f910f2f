import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def taught_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """URL and model folder of a real vLLM whose tiny model knows `benchmarks.lessons` by heart."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed (extra: cpu)")
    from benchmarks.drift import PARSERS
    from benchmarks.engine import serve
    from benchmarks.lessons import LESSONS, STEPS
    from benchmarks.tiny_model import make

    folder = tmp_path_factory.mktemp("taught")
    with serve(folder / "tiny", folder / "vllm.log", *PARSERS) as server:
        make(folder / "tiny", steps=STEPS, lessons=LESSONS)
        server.wait()
        yield server.url, folder / "tiny"
