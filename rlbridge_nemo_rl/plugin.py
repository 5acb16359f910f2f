"""The NeMo-RL plugin's entry point. Imports without nemo_rl."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlbridge.hookspecs import Framework, hookimpl

if TYPE_CHECKING:
    from rlbridge_nemo_rl.backend import NemoRLBackend

# The name on PyPI is an empty placeholder: NeMo-RL is used from a clone, by uv.
INSTALL = (
    "git clone --recursive https://github.com/NVIDIA-NeMo/RL && cd RL && "
    "uv run --with rlbridge rlbridge run --framework nemo_rl ...  # see docs/nemo_rl.md"
)


def _load() -> "NemoRLBackend":
    from rlbridge_nemo_rl.backend import NemoRLBackend

    return NemoRLBackend()


def _export(checkpoint: Path, output: Path) -> list[str]:
    from rlbridge_nemo_rl.export import export_command

    return export_command(checkpoint, output)


@hookimpl
def rlbridge_frameworks() -> list[Framework]:
    """Connects NeMo-RL."""
    return [
        Framework(
            name="nemo_rl",
            summary="NeMo-RL 0.6 and 0.7, from inside a checkout: GRPO sync and async, SFT, DPO",
            requires=("nemo_rl",),
            install=INSTALL,
            load=_load,
            exporter=_export,
        )
    ]
