"""Who decides how tokens are sampled."""

from typing import Any

import pytest

from rlbridge.errors import ConfigError
from rlbridge.gateway.config import GatewayConfig, SamplingPolicy
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.sampling import Resolved, resolve

TRAINER = SamplingPolicy(mode="trainer", temperature=1.0, top_p=0.9)


def resolved(body: dict[str, Any], policy: SamplingPolicy, room: int = 100) -> Resolved:
    return resolve(body, policy, prompt_tokens=10, max_model_len=10 + room)


def test_the_clients_parameters_count_and_the_policy_fills_the_rest() -> None:
    policy = SamplingPolicy(temperature=0.7, top_p=0.9)
    got = resolved({"temperature": 0.2, "stop": ["x"], "top_k": 5, "model": "m"}, policy)
    assert got.params == {
        "temperature": 0.2, "top_p": 0.9, "stop": ["x"], "top_k": 5, "max_tokens": 100,
    }  # fmt: skip


@pytest.mark.parametrize("off", [-1, 0, None])
def test_no_number_means_off(off: int | None) -> None:
    assert "top_k" not in resolved({"top_k": off}, SamplingPolicy()).params


def test_a_seed_is_dropped_and_that_is_said() -> None:
    got = resolved({"seed": 3}, SamplingPolicy())
    assert "seed" not in got.params
    assert got.notes == ("seed dropped",)


def test_the_trainers_parameters_override_and_that_is_said() -> None:
    got = resolved({"temperature": 0.2, "top_p": 0.9, "presence_penalty": 1, "stop": "x"}, TRAINER)
    assert got.params == {"temperature": 1.0, "top_p": 0.9, "stop": "x", "max_tokens": 100}
    assert got.notes == ("temperature 0.2 overridden", "presence_penalty 1 overridden")


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.2), ("top_k", 5), ("logit_bias", {"1": 5})]
)
def test_a_trainer_that_refuses_names_the_field(field: str, value: object) -> None:
    policy = TRAINER.model_copy(update={"conflict": "refuse"})
    with pytest.raises(ApiError) as told:
        resolved({field: value}, policy)
    assert (told.value.status, told.value.param, told.value.code) == (400, field, "sampling_policy")


def test_what_agrees_with_the_trainer_is_no_conflict() -> None:
    policy = TRAINER.model_copy(update={"conflict": "refuse"})
    body = {"temperature": 1, "top_p": 0.9, "top_k": -1, "presence_penalty": 0}
    assert resolved(body, policy).params == {
        "temperature": 1.0, "top_p": 0.9, "max_tokens": 100,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_length_stays_within_policy_and_context(name: str) -> None:
    assert resolved({name: 50}, SamplingPolicy()).params["max_tokens"] == 50
    got = resolved({name: 500}, SamplingPolicy())
    assert got.params["max_tokens"] == 100
    assert got.notes == ("max_tokens 500 clamped to 100",)
    assert resolved({name: 50}, SamplingPolicy(max_tokens=20)).params["max_tokens"] == 20


def test_a_trainers_policy_needs_a_temperature() -> None:
    with pytest.raises(ConfigError, match=r"needs sampling\.temperature"):
        GatewayConfig.parse({"sampling": {"mode": "trainer"}})
