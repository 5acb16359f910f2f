"""The NeMo-RL plugin's entry point. Imports without nemo_rl."""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from rlbridge.hookspecs import Export, Framework, hookimpl

if TYPE_CHECKING:
    from rlbridge_nemo_rl.backend import NemoRLBackend

INSTALL = (
    "git clone --recursive https://github.com/NVIDIA-NeMo/RL && cd RL && "
    "uv run --with rlbridge rlbridge run --framework nemo_rl ...  "
    "# pip's nemo-rl is an empty placeholder; see docs/nemo_rl.md"
)


def _requires() -> tuple[str, ...]:
    """What must be importable: NeMo-RL, and not the placeholder of its name on PyPI."""
    found = importlib.util.find_spec("nemo_rl")
    places = (found.submodule_search_locations or ()) if found else ()
    placeholder = found and not any(Path(place, "algorithms").is_dir() for place in places)
    return ("nemo_rl.algorithms",) if placeholder else ("nemo_rl",)


def _version() -> str:
    """What the clone calls itself; where it is only on the path there is no distribution to ask."""
    return str(importlib.import_module("nemo_rl").__version__)


def _load() -> "NemoRLBackend":
    from rlbridge_nemo_rl.backend import NemoRLBackend

    return NemoRLBackend()


def _export(checkpoint: Path, output: Path) -> Export:
    from rlbridge_nemo_rl.export import export_of

    return export_of(checkpoint, output)


@hookimpl
def rlbridge_frameworks() -> list[Framework]:
    """Connects NeMo-RL."""
    return [
        Framework(
            name="nemo_rl",
            summary="NeMo-RL 0.6, 0.7 and its head, inside a clone: GRPO sync and async, SFT, DPO",
            requires=_requires(),
            install=INSTALL,
            load=_load,
            exporter=_export,
            supported="0.6, 0.7 and the development head of August 2026",
            version=_version,
            algorithms=("grpo", "sft", "dpo"),
            prompts=True,
        )
    ]
