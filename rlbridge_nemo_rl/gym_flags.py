"""The flags of NeMo-RL's own Gym path: what to set, and what can't run.

Gym's agents ask NeMo-RL's vLLM over HTTP there, so it has to listen, to tokenize, and to be asked
with one temperature and top_p.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from rlbridge.errors import ConfigError, PluginError
from rlbridge_nemo_rl import versions

_ACTORS = "nemo_rl.environments.nemo_gym"

FLAGS: Mapping[str, Any] = {
    "policy.generation.backend": "vllm",
    "policy.generation.vllm_cfg.async_engine": True,
    "policy.generation.vllm_cfg.expose_http_server": True,
    "policy.generation.stop_strings": None,
    "policy.generation.stop_token_ids": None,
    "policy.generation.top_k": None,
    "grpo.max_val_samples": None,
    "grpo.val_batch_size": None,
    "env.should_use_nemo_gym": True,
}
"""Dotted keys that the path needs."""


def check(config: Any) -> None:
    """See that a NeMo-RL config can roll out through Gym's agents and our gateway.

    Args:
        config: a `MasterConfig`, or the same as plain data.

    Raises:
        ConfigError: naming the key.
    """
    generation = versions.section(config, "policy")["generation"]
    vllm = generation.get("vllm_cfg") or {}
    grpo, env = versions.section(config, "grpo"), versions.section(config, "env")
    is_async = bool(versions.value(versions.value(grpo, "async_grpo") or {}, "enabled"))
    sampled = {name: generation.get(name) for name in ("temperature", "top_p")}
    path, generating = "policy.generation", "policy.generation.vllm_cfg"
    rules = (
        (not env.get("should_use_nemo_gym"), "env.should_use_nemo_gym: must be true"),
        (generation.get("backend") != "vllm", f"{path}.backend: must be vllm"),
        (not vllm.get("async_engine"), f"{generating}.async_engine: must be true"),
        (not vllm.get("expose_http_server"), f"{generating}.expose_http_server: must be true"),
        (
            bool(vllm.get("skip_tokenizer_init")),
            f"{generating}.skip_tokenizer_init: must be false, for its server tokenizes; leave it "
            "out, and set expose_http_server before configure_generation_config",
        ),
        (
            bool(generation.get("stop_strings") or generation.get("stop_token_ids")),
            f"{path}.stop_strings, stop_token_ids: must be null; call setup_nemo_gym_config first",
        ),
        (bool(generation.get("top_k")), f"{path}.top_k: must be null"),
        (
            any(generation.get(f"val_{name}", given) != given for name, given in sampled.items()),
            f"{path}.val_temperature, val_top_p: must be those of training, which the gateway "
            "sends with every call",
        ),
        (
            versions.value(grpo, "max_val_samples") is not None,
            "grpo.max_val_samples: must be null; all validation rows are used",
        ),
        (
            is_async and bool((generation.get("colocated") or {}).get("enabled")),
            f"{path}.colocated.enabled: must be false with grpo.async_grpo, whose engines answer "
            "while the policy trains",
        ),
        (
            is_async and bool((env.get("nemo_gym") or {}).get("effort_levels")),
            "env.nemo_gym.effort_levels: NeMo-RL shapes rewards by them in the synchronous loop "
            "and in validation, and not in async GRPO; remove one of the two",
        ),
    )
    for broken, message in rules:
        if broken:
            raise ConfigError(f"{message} (NeMo-RL's Gym path through the gateway)")


def check_installed() -> None:
    """See that `rlbridge run` can launch the path here: its actor is `setup`'s, our gateway runs.

    Raises:
        PluginError: says what can be done.
    """
    makers = (("nemo_rl.algorithms.grpo", "NemoGym"), (_ACTORS, "spinup_nemo_gym_actor"))
    if not any(hasattr(importlib.import_module(module), name) for module, name in makers):
        raise PluginError(
            "this NeMo-RL's grpo.setup makes no Gym actor, as 0.7's does; use v0.7, or another "
            "agent.loop"
        )
    for module in ("fastapi", "uvicorn", "renderers"):
        if importlib.util.find_spec(module) is None:
            raise PluginError(
                f"the gateway needs {module}, which isn't installed here: uv run --with "
                "'rlbridge[gateway]' ..."
            )
