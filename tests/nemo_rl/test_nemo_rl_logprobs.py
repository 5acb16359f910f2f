"""Raw logprobs of NeMo-RL's vLLM are trained on only where they are those of what was sampled."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl import logprobs
from rlbridge_nemo_rl.gym_flags import check
from rlbridge_nemo_rl.gym_gateway import GymGateway
from tests.nemo_rl.test_gym_gateway import config
from tests.nemo_rl.test_master_config import compiled

MODE = "policy.generation.vllm_cfg.logprobs_mode"
PLAIN = {"policy.generation.temperature": 1.0, "policy.generation.top_p": 1.0}


def nemo_rl_whose_vllm(monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
    """Let what is importable be a NeMo-RL whose `vllm_cfg` knows these keys."""
    package, module = ModuleType("nemo_rl"), ModuleType("nemo_rl.models.generation.vllm.config")
    package.__spec__ = importlib.machinery.ModuleSpec("nemo_rl", None)
    known = type("VllmSpecificArgs", (), {"__annotations__": {"async_engine": bool, **keys}})
    module.VllmSpecificArgs = known  # type: ignore[attr-defined]
    for made in (package, module):
        monkeypatch.setitem(sys.modules, made.__name__, made)


def as_in_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    nemo_rl_whose_vllm(monkeypatch, logprobs_mode=str)


def test_up_to_07_logprobs_are_processed_whatever_the_config_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nemo_rl_whose_vllm(monkeypatch)
    for changed in ({}, {MODE: "raw_logprobs"}):
        assert logprobs.mode_of(config(**changed).policy["generation"]) == "processed"


@pytest.mark.parametrize("changed", [{}, {MODE: None}, {MODE: "raw_logprobs"}])
def test_raw_logprobs_of_another_distribution_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], tmp_path: Path
) -> None:
    """A config without the key has vLLM's default in the head."""
    as_in_the_head(monkeypatch)
    with pytest.raises(ConfigError, match=f"^{MODE}=raw_logprobs: at temperature 0.8 and top_p"):
        GymGateway.of(config(**changed), tmp_path)
    narrowed = {**changed, **PLAIN, "policy.generation.top_k": 5}
    with pytest.raises(ConfigError, match="without top_k"):
        logprobs.mode_of(config(**narrowed).policy["generation"])


def test_logits_are_no_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    as_in_the_head(monkeypatch)
    with pytest.raises(ConfigError, match=f"^{MODE}=raw_logits"):
        logprobs.mode_of(config(**PLAIN, **{MODE: "raw_logits"}).policy["generation"])


@pytest.mark.parametrize(
    ("changed", "mode"), [({MODE: "processed_logprobs"}, "processed"), (PLAIN, "raw")]
)
def test_the_gateway_is_told_what_logprobs_are_of(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    as_in_the_head(monkeypatch)
    gateway = GymGateway.of(config(**changed), tmp_path)
    assert gateway._config["policy"]["logprobs_mode"] == mode


def test_validation_that_samples_otherwise_is_refused_by_name() -> None:
    """NeMo-RL's head has such a profile; the gateway sends the training's with every call."""
    same = {"policy.generation.val_temperature": 0.8, "policy.generation.val_top_p": 0.95}
    check(config(**same))
    for key in same:
        with pytest.raises(ConfigError, match="val_temperature, val_top_p: must be those of"):
            check(config(**same | {key: 0.5}))


@pytest.mark.nemo_rl
def test_a_run_is_refused_for_what_its_base_yaml_says_of_logprobs(tmp_path: Path) -> None:
    from rlbridge_nemo_rl import versions

    rollout, native = {"temperature": 0.7}, {MODE: "raw_logprobs"}
    if not versions.logprobs_configurable():
        compiled(tmp_path, rollout=rollout, nemo_rl=native)  # ignored there
        return
    with pytest.raises(ConfigError, match=MODE):
        compiled(tmp_path, rollout=rollout, nemo_rl=native)
    compiled(tmp_path, rollout=rollout)
