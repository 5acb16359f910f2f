"""A whole NeMo-RL config: its base YAML, what a run config compiles to, the user's own keys.

The `nemo_rl:` section comes last and wins; its `defaults` names another base YAML, as in NeMo-RL.
The result is validated by the installed NeMo-RL before anything is started.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlbridge.errors import ConfigError
from rlbridge.run_config import flatten
from rlbridge_nemo_rl import logprobs, versions

BASES = {
    "grpo": "examples/configs/grpo_math_1B.yaml",
    "sft": "examples/configs/sft.yaml",
    "dpo": "examples/configs/dpo.yaml",
}
# Sections of ours that take the place of the base's: a merge would keep its datasets.
_REPLACED = ("data", "env")
_OPTIMIZER = "policy.optimizer."


def compose(algorithm: str, keys: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The whole config as plain data, interpolations resolved, valid for the installed NeMo-RL.

    Args:
        algorithm: "grpo", "sft" or "dpo".
        keys: dotted keys, see `keys`.
        native: the user's `nemo_rl` section, nested or dotted.

    Raises:
        ConfigError: the base YAML is missing, a value can't be resolved, NeMo-RL refuses the
            config, with every mistake by its path, or samples would have logprobs that can't be
            trained on.
    """
    own = dict(native)
    base = _base(algorithm, own.pop("defaults", None))
    for section in _REPLACED:
        if section in {key.split(".")[0] for key in keys}:
            base.pop(section, None)
    users = _nested(flatten(own))
    if OmegaConf.select(OmegaConf.merge(base, users), "policy.optimizer") is None:
        # Megatron has its own; the rate alone would be no optimizer.
        keys = {key: value for key, value in keys.items() if not key.startswith(_OPTIMIZER)}
    merged = OmegaConf.merge(base, _nested(keys), users)
    _complete_async(merged)
    if "checkpointing.model_save_format" not in flatten(own):
        _complete_checkpoints(merged)
    try:
        plain: Any = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"nemo_rl: {error}") from error
    _check_async(plain)
    versions.validated(algorithm, plain)
    generation = plain["policy"].get("generation") or {}
    if algorithm == "grpo" and generation.get("backend") == "vllm":
        logprobs.mode_of(generation)
    return dict(plain)


def _base(algorithm: str, given: object) -> DictConfig:
    from nemo_rl.utils.config import load_config, register_omegaconf_resolvers

    register_omegaconf_resolvers()
    root = versions.checkout()
    path = root / str(given or BASES[algorithm])  # an absolute path stays one
    if not path.is_file():
        what = "nemo_rl.defaults" if given else "NeMo-RL's base config"
        raise ConfigError(
            f"{what}: there is no {path}; name a YAML of the checkout in nemo_rl.defaults"
        )
    loaded: DictConfig = load_config(path)
    return loaded


def _nested(keys: Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create({})
    for key, value in keys.items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def _complete_async(merged: Any) -> None:
    """Async GRPO needs flags elsewhere; a user who asks for it has asked for them."""
    if OmegaConf.select(merged, "grpo.async_grpo.enabled"):
        OmegaConf.update(merged, "policy.generation.vllm_cfg.async_engine", True, force_add=True)
        OmegaConf.update(merged, "loss_fn.use_importance_sampling_correction", True, force_add=True)


def _complete_checkpoints(merged: Any) -> None:
    """NeMo-RL's converter reads torch's format; Automodel's workers write shards of another.

    Its other workers have one format, and refuse to be told any.
    """
    automodel = all(OmegaConf.select(merged, f"policy.dtensor_cfg.{k}") for k in ("enabled", "_v2"))
    form = "torch_save" if automodel else None
    OmegaConf.update(merged, "checkpointing.model_save_format", form, force_add=True)


def _check_async(plain: Mapping[str, Any]) -> None:
    if (plain.get("data_plane") or {}).get("enabled"):
        raise ConfigError(
            "nemo_rl.data_plane.enabled: that trainer computes baselines inside a worker, where a "
            "missing reward can't be masked; set it to false"
        )
    grpo = plain.get("grpo") or {}
    if not (grpo.get("async_grpo") or {}).get("enabled"):
        return
    if plain["policy"]["generation"]["colocated"]["enabled"]:
        raise ConfigError(
            "nemo_rl.grpo.async_grpo.enabled: async GRPO samples on GPUs of its own; set "
            "nemo_rl.policy.generation.colocated.enabled=false and .colocated.resources"
        )
    wrong = [name for name in ("reward_scaling", "reward_shaping") if grpo[name]["enabled"]]
    wrong += ["use_dynamic_sampling"] if grpo["use_dynamic_sampling"] else []
    if wrong:
        raise ConfigError(f"nemo_rl.grpo.{wrong[0]}: NeMo-RL has none with async GRPO; turn it off")
    if grpo.get("seq_logprob_error_threshold") is not None and not versions.hands_over_async_mask():
        raise ConfigError(
            "nemo_rl.grpo.seq_logprob_error_threshold: with it this NeMo-RL's async loop puts a "
            "mask of its own in the place of the one that keeps missing rewards out; set it to null"
        )
