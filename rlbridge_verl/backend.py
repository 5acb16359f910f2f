"""Compiles an rlbridge run config into verl 0.9's own keys. Refuses what verl can't honour.

Values go to verl as Hydra overrides. The user's `verl:` section comes last and wins.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.hookspecs import NativeRun, StepMetrics
from rlbridge.run_config import RunConfig, flatten
from rlbridge_verl.keys import SAMPLERS, headers_file, native_keys, trainer_mode
from rlbridge_verl.overrides import nested, override

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
        _refuse(config)
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


def _refuse(config: RunConfig) -> None:
    if config.nemo_rl:
        raise ConfigError("nemo_rl: native NeMo-RL keys mean nothing to verl; remove the section")
    if config.algorithm.name != "grpo":
        raise ConfigError(
            f"algorithm.name={config.algorithm.name}: rlbridge launches GRPO with verl; use "
            "--framework nemo_rl, or verl's own trainer on what `rlbridge transform` makes"
        )
    mode = trainer_mode(config)
    if mode not in SAMPLERS:
        raise ConfigError(
            f"verl.trainer.v1.trainer_mode={mode}: rlbridge launches {' and '.join(SAMPLERS)}; "
            "for another keep your launcher and name our classes in its config (docs/verl.md)"
        )
    if flatten(config.verl).get("algorithm.filter_groups.enable"):
        raise ConfigError(
            "verl.algorithm.filter_groups.enable: verl leaves group filtering to its own sampler, "
            "and rlbridge's takes its place; remove it"
        )
    estimator = flatten(config.verl).get("algorithm.adv_estimator", config.algorithm.name)
    if estimator != config.algorithm.name and config.agent.loop == "run":
        raise ConfigError(
            f"verl.algorithm.adv_estimator={estimator}: with agent.loop=run a rollout may have "
            "several trajectories, and only grpo counts it once in the baseline; remove it"
        )
    if config.rollout.prompts_per_step % config.algorithm.updates_per_step:
        raise ConfigError(
            f"algorithm.updates_per_step: {config.algorithm.updates_per_step} updates can't split "
            f"rollout.prompts_per_step={config.rollout.prompts_per_step} evenly"
        )
    if config.agent.loop == "run" and len(config.agent.servers) < config.agent.workers:
        raise ConfigError(
            f"agent.servers: {len(config.agent.servers)} agents for agent.workers="
            f"{config.agent.workers}; each worker needs an agent whose model server asks it alone"
        )
    _refuse_biased_logprobs(config)
    if config.trainer.device == "cpu" and config.ray.address:
        raise ConfigError("ray.address: the CPU platform runs in a Ray of its own; remove it")
    if config.trainer.device == "cpu" and config.trainer.gpus_per_node * config.trainer.nodes > 1:
        raise ConfigError(
            "trainer: device cpu is one logical device: gpus_per_node and nodes are 1"
        )


def _refuse_biased_logprobs(config: RunConfig) -> None:
    """Raw logprobs of vLLM are of another distribution than the one sampled from."""
    native = flatten(config.verl)
    rollout = "actor_rollout_ref.rollout"
    mode = native.get(f"{rollout}.logprobs_mode", "processed_logprobs")
    temperature = float(native.get(f"{rollout}.temperature", config.rollout.temperature))
    top_p = float(native.get(f"{rollout}.top_p", config.rollout.top_p))
    if mode.startswith("raw") and (temperature != 1.0 or top_p != 1.0):
        raise ConfigError(
            f"verl.{rollout}.logprobs_mode={mode}: at temperature {temperature} and top_p {top_p} "
            "raw logprobs are not those of the distribution sampled from, and every ratio to the "
            "trainer's would be biased; use processed_logprobs, or temperature=1 and top_p=1"
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
