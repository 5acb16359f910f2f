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
            install=(
                "NeMo-RL is used from a clone of its repository: "
                "cd RL && uv pip install rlbridge && uv run rlbridge run --framework nemo_rl ..."
            ),
            load=_load,
        )
    ]
