"""Compiles an rlbridge run config into verl 0.9's own keys.

Values go to verl as Hydra overrides. The user's `verl:` section comes last and wins.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from rlbridge.hookspecs import NativeRun, StepMetrics
from rlbridge.run_config import RunConfig
from rlbridge_verl.keys import headers_file, native_keys
from rlbridge_verl.overrides import nested, override
from rlbridge_verl.refusals import refuse

DRIVER = "rlbridge_verl.driver"
# Actors that must live as long as the run, by the class names Ray puts into process titles.
COMPONENTS = ("AgentLoopWorker", "RewardLoopWorker", "WorkerDict", "vLLMHttpServer", "EngineCore")


class VerlBackend:
    """What `rlbridge run --framework verl` uses."""

    def compile(self, config: RunConfig, run_dir: Path) -> NativeRun:
        """Compile `config`; files of the run go under `run_dir`.

        Raises:
            ConfigError: a key holds what verl can't honour.
        """
        refuse(config)
        keys = native_keys(config, run_dir)
        overrides = [override(key, value) for key, value in keys.items()]
        env = _environment(config, run_dir)
        by_hand = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
        prefix = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
        return NativeRun(
            config=nested(keys),
            argv=[sys.executable, "-m", DRIVER, *overrides],
            env=env,
            by_hand=f"mkdir -p {shlex.quote(str(run_dir))} && {prefix} {shlex.join(by_hand)}",
            metrics_path=run_dir / "verl_metrics.jsonl",
            read_metrics=read_metrics,
            secrets=_secrets(config, run_dir),
            components=COMPONENTS,
        )


def _secrets(config: RunConfig, run_dir: Path) -> dict[Path, bytes]:
    """Request headers may hold keys: they travel in a private file, not in a command line."""
    headers = {name: value.get_secret_value() for name, value in config.gym.headers.items()}
    return {headers_file(run_dir): orjson.dumps(headers)} if headers else {}


def _environment(config: RunConfig, run_dir: Path) -> dict[str, str]:
    env = {
        "VERL_FILE_LOGGER_PATH": str(run_dir.resolve() / "verl_metrics.jsonl"),
        "RLBRIDGE_RUN_DIR": str(run_dir.resolve()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.trainer.device == "cpu":
        env |= {
            "VERL_USE_EXTERNAL_MODULES": "rlbridge_verl.cpu_platform",
            "VERL_PLATFORM": "cpu",
            "VERL_ENGINE_DEVICE": "cuda",  # verl's override: its engines are registered for cuda
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",  # a first request would compile for a minute
            # Ray turns 127.0.0.1 into the node's address unless clusters are switched off, by the
            # switch it has for systems without them.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "HF_HUB_OFFLINE": "1",
        }
    return env


def read_metrics(line: Mapping[str, Any]) -> StepMetrics | None:
    """One line of verl's file logger, `{step, data}`, as a step; None for validation lines."""
    data = line.get("data", {})
    if "training/global_step" not in data:
        return None

    def number(name: str) -> float | None:
        value = data.get(name)
        return float(value) if isinstance(value, int | float) else None

    return StepMetrics(
        step=int(line["step"]),
        reward_mean=number("critic/score/mean"),
        response_tokens_mean=number("response_length/mean"),
        tokens_per_s=number("perf/throughput"),
        step_s=number("timing_s/step"),
        rollout_probs_diff_max=number("training/rollout_probs_diff_max"),
        native=data,
    )
