"""What the logprobs are of that NeMo-RL's vLLM gives, and that training compares with its own.

Up to 0.7 always the distribution that was sampled from. In the development head
`policy.generation.vllm_cfg.logprobs_mode` says, its base config sets processed_logprobs, and a
config that lacks the key gets vLLM's default, which is raw. Refuses logprobs of another
distribution than the one sampled from, and logits. Imports NeMo-RL only to ask what it knows.
"""

from collections.abc import Mapping
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl import versions

KEY = "policy.generation.vllm_cfg.logprobs_mode"
_PROCESSED, _RAW = "processed_logprobs", "raw_logprobs"


def mode_of(generation: Mapping[str, Any]) -> str:
    """`raw` or `processed`.

    Args:
        generation: `policy.generation` of a config for vLLM.

    Raises:
        ConfigError: logprobs of another distribution than the one sampled from, or logits.
    """
    mode = _PROCESSED
    if versions.logprobs_configurable():
        mode = (generation.get("vllm_cfg") or {}).get("logprobs_mode") or _RAW
    if mode not in (_PROCESSED, _RAW):
        raise ConfigError(f"{KEY}={mode}: training needs logprobs; set {_PROCESSED}")
    temperature, top_p = float(generation["temperature"]), float(generation["top_p"])
    narrowed = temperature != 1.0 or top_p != 1.0 or bool(generation.get("top_k"))
    if mode == _RAW and narrowed:
        raise ConfigError(
            f"{KEY}={mode}: at temperature {temperature:g} and top_p {top_p:g} raw logprobs are "
            "not those of the distribution sampled from, and every ratio to the trainer's would "
            f"be biased; set {_PROCESSED}, or temperature=1 and top_p=1 without top_k"
        )
    return mode.removesuffix("_logprobs")
