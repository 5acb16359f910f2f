"""What is refused before a run, and rewards in each form that verl loads."""

import functools
import warnings
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl imports what Ray has deprecated
    import hydra
    import torch
    from omegaconf import OmegaConf
    from verl.protocol import DataProto
    from verl.trainer.ppo.reward import load_reward_manager

    from rlbridge_verl.scoring import InvalidRewardError, Scorer
    from rlbridge_verl.settings import GymSection, gym_section, require_verl

from rlbridge.contracts.reward import ValidReward
from rlbridge.errors import ConfigError
from rlbridge.testing import Faults, GymServer, make_row
from rlbridge.testing.server import gym_server
from tests.verl.dialogues import tokenizer_of

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

MANAGER = [
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.module.path=pkg://rlbridge_verl",
    "reward.reward_manager.name=NeMoGymReward",
]
FUNCTION = [
    "reward.custom_reward_function.path=pkg://rlbridge_verl",
    "reward.custom_reward_function.name=nemo_gym_score",
]


@functools.cache
def _verls_own() -> Any:
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer")
    OmegaConf.set_struct(config, False)
    return config


def compose(*overrides: str) -> Any:
    """verl's own config with these keys changed."""
    changes = OmegaConf.from_dotlist([override.lstrip("+") for override in overrides])
    return OmegaConf.merge(_verls_own(), changes)


@pytest.fixture
async def gym() -> AsyncIterator[GymServer]:
    rewards = {"reward": 0.75, "reward_components": {"format": 1.0}}
    async with gym_server(rewards=rewards) as server:
        yield server


def manager_of(form: str, gym: GymServer) -> Any:
    """The reward manager, as verl's own loader makes it."""
    keys = {"max_attempts": 1, "url": gym.url}
    if form == "manager":
        section = [f"+reward.nemo_gym.{key}={value}" for key, value in keys.items()]
        config = compose(*MANAGER, *section)
    else:
        kwargs = "reward.custom_reward_function.reward_kwargs"
        config = compose(*FUNCTION, *(f"+{kwargs}.{key}={value}" for key, value in keys.items()))
    return load_reward_manager(config, tokenizer_of())


def trajectory() -> DataProto:
    """One trajectory as verl's reward loop hands it over."""
    responses = torch.tensor([tokenizer_of().encode("Done.")])
    width = responses.shape[1]
    row = make_row("Say done.", expected_answer="Done.")
    columns = {
        "data_source": "counter",
        "reward_model": {"style": "rule", "ground_truth": None},
        "extra_info": {"gym_row": orjson.dumps(row).decode(), "index": 3},
        "raw_prompt": [],
        "index": 3,
    }
    return DataProto.from_dict(
        tensors={"responses": responses, "attention_mask": torch.ones(1, width + 2).long()},
        non_tensors={name: _one(value) for name, value in columns.items()},
    )


def _one(value: Any) -> Any:
    import numpy as np

    column = np.empty(1, dtype=object)
    column[0] = value
    return column


@pytest.mark.parametrize("form", ["manager", "function"])
async def test_a_reward_reaches_verl_in_each_form_its_loader_takes(
    form: str, gym: GymServer
) -> None:
    result = await manager_of(form, gym).run_single(trajectory())
    assert result["reward_score"] == 0.75
    info = result["reward_extra_info"]
    assert info["gym/format"] == 1.0
    assert info["gym/attempts"] == 1.0
    assert "acc" not in info  # of a missing acc verl's validation makes a 0
    (_, body), *_ = [r for r in gym.behaviour.requests if r[0] == "/verify"]
    assert body["expected_answer"] == "Done."
    assert body["response"]["output"][0]["content"][0]["text"] == "Done."


@pytest.mark.parametrize("form", ["manager", "function"])
async def test_an_invalid_reward_raises_in_each_form(form: str) -> None:
    async with gym_server(faults=Faults(rate=1.0, kinds=["null_reward"])) as server:
        with pytest.raises(InvalidRewardError, match="missing_reward"):
            await manager_of(form, server).run_single(trajectory())


async def test_a_sample_that_its_environment_masks_raises() -> None:
    async with gym_server(rewards={"reward": 1.0, "mask_sample": True}) as server:
        with pytest.raises(InvalidRewardError, match="asks to mask"):
            await manager_of("manager", server).run_single(trajectory())


@pytest.mark.parametrize(
    ("override", "spelling"),
    [
        ("custom_reward_function.path=my_reward.py", "reward.custom_reward_function.path"),
        ("reward_model.reward_manager=dapo", "reward.reward_manager.name"),
        ("reward_model.reward_loop_source=importlib", "reward.reward_manager.source"),
        ("reward_model.num_workers=3", "reward.num_workers"),
    ],
)
def test_keys_of_verl_0_7_are_refused_with_their_new_spelling(override: str, spelling: str) -> None:
    with pytest.raises(ConfigError, match=f"is now {spelling}"):
        gym_section(compose(override))


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'verify_timeout_s'"):
        gym_section(compose("+reward.nemo_gym.verify_timout_s=3"))


@pytest.mark.parametrize(
    ("version", "words"), [("0.7.1", "leaving the batch"), ("0.8.0", "nobody has run"), ("1.0", "")]
)
def test_another_verl_is_refused_by_version(
    version: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    with pytest.raises(ConfigError, match=f"found {version}.*{words}"):
        require_verl()


def test_declared_components_are_reported_by_every_sample() -> None:
    scorer = Scorer(GymSection(components=("format", "length")))
    info = scorer.extra_info(ValidReward(1.0, {"format": 0.5, "other": 1.0}))
    assert info["gym/format"] == 0.5
    assert info["gym/length"] is None
    assert "gym/other" not in info


def test_verls_validation_takes_rewards_that_report_different_parts() -> None:
    from verl.trainer.ppo.metric_utils import process_validation_metrics

    infos = {"reward": [1.0, 0.0], "gym/format": [0.5, None]}
    found = process_validation_metrics(["a", "b"], ["u", "v"], infos)
    assert found["a"]["gym/format"]["mean@1"] == 0.5
    assert "gym/format" not in found["b"]


def test_rows_go_to_their_own_environments_server(tmp_path: Any) -> None:
    headers = tmp_path / "headers.json"
    headers.write_text('{"Authorization": "s3cret"}')
    section = GymSection(
        url="http://127.0.0.1:1", servers={"b": "http://127.0.0.1:2"}, headers_file=headers
    )
    scorer = Scorer(section)
    assert scorer.client("a").config.url == "http://127.0.0.1:1"
    assert scorer.client("b").config.url == "http://127.0.0.1:2"
    assert scorer.client("c") is scorer.client("a")
    assert scorer.client("b").config.headers["Authorization"].get_secret_value() == "s3cret"
