"""The verl plugin's entry point. Imports without verl."""

from typing import TYPE_CHECKING

from rlbridge.hookspecs import Framework, hookimpl

if TYPE_CHECKING:
    from rlbridge_verl.backend import VerlBackend


def _load() -> "VerlBackend":
    from rlbridge_verl.backend import VerlBackend

    return VerlBackend()


@hookimpl
def rlbridge_frameworks() -> list[Framework]:
    """Connects verl."""
    return [
        Framework(
            name="verl",
            summary="verl 0.9 (V1 trainer): GRPO on FSDP2 with vLLM rollouts, GPU or CPU",
            requires=("verl", "transfer_queue"),
            install="pip install 'rlbridge[verl,gpu]'  # without a GPU: make setup",
            load=_load,
            supported="0.9",
            algorithms=("grpo",),
            prompts=True,
        )
    ]
