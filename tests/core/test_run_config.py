"""A run's config: YAML in, overrides on top, mistakes named with the nearest right key."""

from pathlib import Path

import pytest

from rlbridge.errors import ConfigError
from rlbridge.run_config import flatten, load_run_config

GOOD = "policy: {path: p}\ndata: {train: rows.jsonl}\n"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    return path


def test_defaults_fill_what_the_file_leaves_out(good: Path) -> None:
    config = load_run_config(good)
    assert config.trainer.steps == 30
    assert config.gym.serve is None


def test_an_override_reaches_a_nested_key_and_keeps_its_type(good: Path) -> None:
    config = load_run_config(
        good, ["trainer.steps=7", "gym.serve=null", "verl.a.b=[1, two]", "algorithm.kl_coef=1e-3"]
    )
    assert config.trainer.steps == 7
    assert config.verl == {"a": {"b": [1, "two"]}}
    assert config.algorithm.kl_coef == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.stepz=3", "trainer.stepz: unknown key; did you mean 'steps'"),
        ("rolout.temperature=1", "rolout: unknown key; did you mean 'rollout'"),
        ("trainer.steps=many", "trainer.steps"),
        ("trainer.steps", "must look like key.path=value"),
        ("policy.path.deep=1", "policy.path is a value, not a section"),
        ("trainer.steps=[", "not YAML"),
        ("rollout.samples_per_prompt=1", "rollout.samples_per_prompt"),
        ("trainer=3", "run.yaml, with the overrides: trainer: must be a mapping of keys: steps, "),
        ("gym.url=foo", "gym: a Gym URL starts with"),
    ],
)
def test_a_wrong_override_is_refused_by_name(good: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + words.replace(".", r"\.")):
        load_run_config(good, [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", r"must hold a mapping of sections \(policy, data, ...\), not a list"),
        ("", "not nothing"),
        ("\n\na: [", "run.yaml:3 is not YAML: expected the node content"),
        ("a: {b: 1}\nc: 2\na: {d: 1}\n", "run.yaml:3 is not YAML: the key 'a' is there twice"),
        (None, "can't read"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_run_config(path)


def test_floats_without_a_point_are_numbers_in_native_keys_too(good: Path) -> None:
    good.write_text(GOOD + "verl: {lr: 1e-6, eps: 2.5E+3, name: 1e-6b, hex: '1e5'}\n")
    config = load_run_config(good, ["nemo_rl.policy.lr=3e-7"])
    assert config.verl == {"lr": 1e-6, "eps": 2500.0, "name": "1e-6b", "hex": "1e5"}
    assert config.nemo_rl == {"policy": {"lr": 3e-7}}


def test_flatten_joins_keys_with_dots_and_keeps_empty_mappings() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_the_demo_config_is_valid() -> None:
    config = load_run_config(Path("examples/demo.yaml"))
    assert config.gym.serve == "arithmetic"
    assert config.rollout.prompts_per_step % config.algorithm.updates_per_step == 0
