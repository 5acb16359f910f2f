"""What verl 0.9 can't honour in a run config, refused before anything is started.

Each refusal names the key that is in the way, and what to write instead.
"""

from rlbridge.errors import ConfigError
from rlbridge.launch import idle
from rlbridge.run_config import RunConfig, flatten
from rlbridge_verl.keys import SAMPLERS, correction_level, trainer_mode


def refuse(config: RunConfig) -> None:
    """Refuse `config` if verl would train on something else than it says.

    Raises:
        ConfigError: a key holds what verl can't honour.
    """
    _refuse_other_trainers(config)
    idle.refuse(config, idle.of_run(config) | idle.of_rollouts(config) | _idle(config))
    _refuse_wrong_baselines(config)
    _refuse_uneven_shares(config)
    _refuse_biased_logprobs(config)
    _refuse_wide_cpus(config)


def _refuse_other_trainers(config: RunConfig) -> None:
    if config.nemo_rl:
        raise ConfigError(
            "nemo_rl: native NeMo-RL keys mean nothing to verl; remove the section, or run it with "
            "--framework nemo_rl"
        )
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


def _idle(config: RunConfig) -> dict[str, str]:
    """Keys that do nothing here; with a NeMo-RL run of the same config they may."""
    found = {}
    if config.agent.loop == "tools":
        why = (
            "our agent loop judges in sessions, whose verdicts are never shared or kept; remove it"
        )
        found = {f"gym.{name}": why for name in idle.SHARED_VERDICTS}
    if correction_level(config) == "none":
        found["algorithm.correction_threshold"] = (
            "nothing is weighed here; set algorithm.rollout_correction=token, or remove it"
        )
    return found


def _refuse_wrong_baselines(config: RunConfig) -> None:
    """A group's baseline is over its valid rollouts, each counted once."""
    native = flatten(config.verl)
    if native.get("algorithm.filter_groups.enable"):
        raise ConfigError(
            "verl.algorithm.filter_groups.enable: verl leaves group filtering to its own sampler, "
            "and rlbridge's takes its place; remove it"
        )
    estimator = native.get("algorithm.adv_estimator", config.algorithm.name)
    if estimator != config.algorithm.name and config.agent.loop == "run":
        raise ConfigError(
            f"verl.algorithm.adv_estimator={estimator}: with agent.loop=run a rollout may have "
            "several trajectories, and only grpo counts it once in the baseline; remove it"
        )


def _refuse_uneven_shares(config: RunConfig) -> None:
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


def _refuse_wide_cpus(config: RunConfig) -> None:
    if config.trainer.device == "cpu" and config.ray.address:
        raise ConfigError("ray.address: the CPU platform runs in a Ray of its own; remove it")
    if config.trainer.device == "cpu" and config.trainer.gpus_per_node * config.trainer.nodes > 1:
        raise ConfigError(
            "trainer: device cpu is one logical device: gpus_per_node and nodes are 1"
        )
