"""The NeMo-RL plugin's entry point. Imports without nemo_rl."""

from rlbridge.errors import PluginError
from rlbridge.hookspecs import Backend, Framework, hookimpl


def _load() -> Backend:
    raise PluginError(
        "the NeMo-RL backend can't launch runs yet; train with --framework verl, "
        "or follow the project's changelog for NeMo-RL"
    )


@hookimpl
def rlbridge_frameworks() -> list[Framework]:
    """Connects NeMo-RL."""
    return [
        Framework(
            name="nemo_rl",
            summary="NeMo-RL 0.7 (in preparation: discovered, not yet launched)",
            requires=("nemo_rl",),
            # The name on PyPI is an empty placeholder: NeMo-RL is used from a clone.
            install="git clone https://github.com/NVIDIA-NeMo/RL; cd RL; uv pip install rlbridge",
            load=_load,
        )
    ]
