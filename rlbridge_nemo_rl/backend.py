"""What `rlbridge run --framework nemo_rl` uses: a run compiled for the installed NeMo-RL."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.hookspecs import NativeRun, StepMetrics
from rlbridge.run_config import RunConfig
from rlbridge_nemo_rl import gym_flags, origin, versions
from rlbridge_nemo_rl.compose import compose
from rlbridge_nemo_rl.keys import grpo_keys, headers_file
from rlbridge_nemo_rl.offline_keys import offline_keys

DRIVER = "rlbridge_nemo_rl.driver"
METRICS = "nemo_rl_metrics.jsonl"
# Actors that must live as long as the run, by the class names Ray puts into process titles. Our
# environment isn't one: Ray restarts it, and the run goes on. Nobody repeats a running agent's
# rollouts, and async GRPO's collector waits for those that are lost.
COMPONENTS = (
    "VllmGenerationWorker", "VllmAsyncGenerationWorker", "DTensorPolicyWorker",
    "MegatronPolicyWorker", "AsyncTrajectoryCollector", "ReplayBuffer", "rlbridge gateway serve",
    "_RunningAgents",
)  # fmt: skip


class NemoRLBackend:
    """Compiles run configs for NeMo-RL 0.6, 0.7 and its head."""

    def compile(self, config: RunConfig, run_dir: Path) -> NativeRun:
        """Compile `config`; files of the run go under `run_dir`.

        Raises:
            ConfigError: a key holds what NeMo-RL can't honour, or NeMo-RL refuses the result.
            PluginError: this NeMo-RL can't be launched by us.
        """
        versions.check()
        if config.agent.loop == "run":
            gym_flags.check_installed()
        name = config.algorithm.name
        keys = (grpo_keys if name == "grpo" else offline_keys)(config, run_dir)
        native = compose(name, keys, config.nemo_rl)
        if name == "grpo":
            _check_gym_path(config, native)
        headers = {name: value.get_secret_value() for name, value in config.gym.headers.items()}
        yaml = run_dir.resolve() / "native.yaml"
        env = environment(config)
        return NativeRun(
            config=native,
            argv=[sys.executable, "-m", DRIVER, "--config", str(yaml)],
            env=env,
            by_hand=by_hand(config, yaml, env),
            metrics_path=run_dir / METRICS,
            read_metrics=read_metrics,
            secrets={headers_file(run_dir): orjson.dumps(headers)} if headers else {},
            components=COMPONENTS,
        )


def _check_gym_path(config: RunConfig, native: Mapping[str, Any]) -> None:
    """See that a run by Gym's agents has what NeMo-RL's Gym path needs, and no other takes it."""
    if config.agent.loop == "run":
        gym_flags.check(native)
    elif native["env"].get("should_use_nemo_gym"):
        raise ConfigError(
            "nemo_rl.env.should_use_nemo_gym: NeMo-RL's Gym path is agent.loop=run; set that"
        )


def environment(config: RunConfig) -> dict[str, str]:
    """Environment variables of the training process."""
    env = {"RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    if config.ray.address not in (None, "auto"):
        env["RAY_ADDRESS"] = str(config.ray.address)
    return env


def by_hand(config: RunConfig, yaml: Path, env: Mapping[str, str]) -> str:
    """The commands that run the same in the checkout, on this machine and on Slurm."""
    root, trainer = versions.checkout(), config.trainer
    prefix = "".join(f"{name}={shlex.quote(value)} " for name, value in env.items())
    ours = origin.uv_option("gateway" if config.agent.loop == "run" else "")
    command = f"uv run {ours} python -m {DRIVER} --config {shlex.quote(str(yaml))}"
    data = config.data
    files = [data.train, data.validation, *(mixed.path for mixed in data.mix)]
    # What the containers must see: the clone, the run's folder, the policy's, ours and the rows'.
    needed = [root, yaml.parent, config.policy.path.resolve()]
    needed += [folder for folder in [origin.folder()] if folder is not None]
    needed += [path.resolve().parent for path in files if path is not None]
    mounts = ",".join(f"{path}:{path}" for path in dict.fromkeys(needed))
    slurm = (
        f"COMMAND={shlex.quote(prefix + command)} CONTAINER=$NEMO_RL_IMAGE "
        f"MOUNTS={shlex.quote(mounts)} GPUS_PER_NODE={trainer.gpus_per_node} "
        f"sbatch --nodes={trainer.nodes} --gres=gpu:{trainer.gpus_per_node} ray.sub"
    )
    return (
        f"# (save the config above as {yaml} first)\n"
        f"cd {shlex.quote(str(root))}\n{prefix}{command}\n# on Slurm:\n{slurm}"
    )


def read_metrics(line: Mapping[str, Any]) -> StepMetrics | None:
    """One line of our driver's record, `{step, data}`, as a step."""
    data = line.get("data", {})
    if "timing/train/total_step_time" not in data:
        return None
    step_s = data["timing/train/total_step_time"]
    tokens = data.get("train/global_valid_toks")
    chosen = data.get("train/rewards_chosen_mean")
    rejected = data.get("train/rewards_rejected_mean")
    return StepMetrics(
        step=int(line["step"]),
        reward_mean=data.get("train/reward"),
        loss=data.get("train/loss"),
        val_loss=data.get("validation/val_loss", data.get("validation-default/loss")),
        margin=None if chosen is None or rejected is None else chosen - rejected,
        response_tokens_mean=data.get("train/mean_gen_tokens_per_sample"),
        tokens_per_s=tokens / step_s if tokens is not None and step_s else None,
        step_s=step_s,
        native=data,
    )
