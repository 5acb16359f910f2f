"""A CPU platform for verl, through verl's own `PlatformRegistry`. No GPU, no change to verl.

Loaded into every process of a run by `VERL_USE_EXTERNAL_MODULES=rlbridge_verl.cpu_platform`
(verl's switch), chosen by `VERL_PLATFORM=cpu`. What no public hook covers is in `cpu_patches`.
"""

import contextlib
import os
import types
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from rlbridge_verl import cpu_patches


class _CpuDevice(str):
    """The device "cpu" to torch, index 0 where verl formats or indexes it (`f"cpu:{device}"`)."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return "0"

    def __index__(self) -> int:
        return 0

    def __int__(self) -> int:
        return 0


CPU = _CpuDevice("cpu")


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """What a CUDA-only call does on a CPU."""


def _no_bytes(*_args: Any, **_kwargs: Any) -> int:
    return 0


def _free_and_total(*_args: Any) -> tuple[int, int]:
    """Free and total bytes of the device's memory: here the machine's."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


class _DeviceModule(types.ModuleType):
    """`torch.cpu`, with the calls of `torch.cuda` that verl makes and a CPU has no use for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name)


def _device_module() -> types.ModuleType:
    module = _DeviceModule("rlbridge_verl_cpu_device")
    for name in (
        "empty_cache",
        "synchronize",
        "set_device",
        "manual_seed",
        "manual_seed_all",
        "ipc_collect",
        "reset_peak_memory_stats",
        "reset_accumulated_memory_stats",
    ):
        setattr(module, name, _nothing)
    for name in (
        "memory_reserved",
        "memory_allocated",
        "max_memory_allocated",
        "max_memory_reserved",
    ):
        setattr(module, name, _no_bytes)
    calls = {
        "is_available": lambda: False,
        "current_device": lambda: CPU,
        "device_count": lambda: 1,
        "mem_get_info": _free_and_total,
        "get_device_name": lambda *_: "cpu",
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }
    for name, call in calls.items():
        setattr(module, name, call)
    return module


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """verl's platform interface on a CPU. Ray's "GPU" is a logical resource of one device."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return os.environ.get("VERL_PLATFORM") == "cpu"

    def current_device(self) -> str:
        return CPU

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return (None, None)

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # the variable Ray sets for its "GPU" resource

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_resource_options(self, num_gpus: float) -> dict[str, float]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights reach vLLM through shared memory instead of CUDA IPC

    def rollout_env_vars(self) -> dict[str, str]:
        return {}

    def cudart(self) -> None:
        return None


cpu_patches.apply()
