"""No key of a run config is ever dropped: each arrives in the native run, or is an error by name.

Walks the models, so that a new key fails here until somebody decided what becomes of it in every
mode of both frameworks. Needs neither framework.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from rlbridge.config import StrictModel
from rlbridge.errors import ConfigError
from rlbridge.launch import idle
from rlbridge.run_config import GymSection, RunConfig
from rlbridge.testing import make_row

pytest.importorskip("omegaconf", reason="the adapters' composers need it")

from rlbridge_nemo_rl import backend as nemo_rl
from rlbridge_nemo_rl.keys import grpo_keys
from rlbridge_nemo_rl.offline_keys import offline_keys
from rlbridge_verl.backend import VerlBackend

# A row for every algorithm.
ROW = make_row("q") | {"input": "q", "output": "a", "prompt": "q", "chosen": "a", "rejected": "b"}
ROWS = 8
SERVER = {"url": "http://127.0.0.1:8001", "gateway_port": 8100}
# A value other than the default for each key.
VALUES: dict[str, Any] = {
    "policy.path": "/models/other",
    "gym.url": "http://127.0.0.1:9",
    "gym.urls": ["http://127.0.0.1:8"],
    "gym.transport": "httpx",
    "gym.headers": {"X-Key": "secret"},
    "gym.proxy": "http://127.0.0.1:7",
    "gym.http2": True,
    "gym.verify_timeout_s": 7.0,
    "gym.tool_timeout_s": 7.0,
    "gym.run_timeout_s": 7.0,
    "gym.connect_timeout_s": 7.0,
    "gym.total_timeout_s": 7.0,
    "gym.queue_timeout_s": 7.0,
    "gym.keepalive_s": 7.0,
    "gym.max_attempts": 7,
    "gym.backoff_initial_s": 7.0,
    "gym.backoff_max_s": 7.0,
    "gym.max_concurrency": 7,
    "gym.min_concurrency": 7,
    "gym.breaker_failures": 7,
    "gym.breaker_probe_s": 7.0,
    "gym.outage_patience_s": 7.0,
    "gym.single_flight": False,
    "gym.deterministic": False,
    "gym.cache": "memory",
    "gym.cache_path": "cache.sqlite",
    "gym.cache_entries": 7,
    "gym.unknown_params": "drop",
    "gym.session_cookie": "optional",
    "gym.max_reply_mb": 7.0,
    "gym.serve": "math",
    "gym.servers": {"b": "http://127.0.0.1:6"},
    "agent.loop": "tools",
    "agent.max_turns": 7,
    "agent.max_tool_output_chars": 7,
    "agent.parallel_tool_calls": True,
    "agent.servers": [SERVER | {"gateway_port": 8200}],
    "agent.workers": 2,
    "data.train": "other.jsonl",
    "data.prompt": "generic/math",
    "data.mix": [{"path": "more.jsonl"}],
    "data.mix[].path": [{"path": "rows.jsonl"}],
    "data.mix[].weight": [{"path": "more.jsonl", "weight": 2.0}],
    "data.mix[].prompt": [{"path": "more.jsonl", "prompt": "generic/math"}],
    "agent.servers[].url": [SERVER | {"url": "http://127.0.0.1:8002"}],
    "agent.servers[].gateway_port": [SERVER | {"gateway_port": 8300}],
    "data.validation": "other.jsonl",
    "data.max_prompt_tokens": 77,
    "data.shuffle": False,
    "algorithm.name": "sft",
    "algorithm.learning_rate": 7e-7,
    "algorithm.updates_per_step": 2,
    "algorithm.kl_coef": 0.7,
    "algorithm.entropy_coef": 0.7,
    "algorithm.normalize_by_std": False,
    "algorithm.rollout_correction": "token",
    "algorithm.correction_threshold": 7.0,
    "rollout.prompts_per_step": 4,
    "rollout.samples_per_prompt": 4,
    "rollout.max_response_tokens": 77,
    "rollout.temperature": 0.7,
    "rollout.top_p": 0.7,
    "trainer.steps": 7,
    "trainer.device": "cpu",
    "trainer.gpus_per_node": 2,
    "trainer.nodes": 2,
    "trainer.seed": 7,
    "trainer.output_dir": "runs/other",
    "trainer.save_every": 7,
    "trainer.validate_every": 7,
    "trainer.resume": True,
    "trainer.max_invalid_share": 0.7,
    "trainer.invalid_window_steps": 7,
    "trainer.stall_timeout_s": 7.0,
    "trainer.start_timeout_s": 7.0,
    "ray.address": "127.0.0.1:6379",
    "verl": {"trainer.logger": ["console"]},
    "nemo_rl": {"logger.wandb_enabled": True},
}
# What some keys need beside them, to mean something or to be valid.
_VALIDATED = {"data.validation": "rows.jsonl", "trainer.validate_every": 2}
_MIXED = {"data.mix": [{"path": "more.jsonl"}]}
COMPANY: dict[str, dict[str, Any]] = {
    "gym.http2": {"gym.transport": "httpx"},
    "gym.cache_path": {"gym.cache": "sqlite", "gym.cache_path": "first.sqlite"},
    "data.validation": _VALIDATED,
    "trainer.validate_every": _VALIDATED,
    "data.mix[].path": _MIXED,
    "data.mix[].weight": _MIXED,
    "data.mix[].prompt": _MIXED,
}
# What happens to keys that a native run doesn't show.
ELSEWHERE = {
    "gym.serve": "the launcher starts the server; its URL is the one that arrives",
    "trainer.start_timeout_s": "the launcher ends a run whose first step takes longer",
}
ELSEWHERE_NEMO_RL = ELSEWHERE | {
    "trainer.resume": "the launcher leaves the checkpoints, from which NeMo-RL goes on",
    "nemo_rl": "merged over all other keys, see test_master_config",
}

_GYM = {f"gym.{name}" for name in GymSection.model_fields}
_GYM_RUN = {f"gym.{name}" for name in idle.EVERY_CALL | idle.AGENTS}
_GYM_SESSIONS = {f"gym.{name}" for name in idle.SESSIONS}
_GYM_SHARED = {f"gym.{name}" for name in idle.SHARED_VERDICTS}
_OWN = {f"agent.{name}" for name in idle.OWN_AGENT}
_SERVERS = {"agent.servers", "agent.servers[].url", "agent.servers[].gateway_port"}
_MIX = {"data.mix", "data.mix[].path", "data.mix[].weight", "data.mix[].prompt"}
_THRESHOLD = {"algorithm.correction_threshold"}
_NOT_SINGLE = {"gym.run_timeout_s"} | _GYM_SESSIONS | _OWN | _SERVERS
_NOT_TOOLS = {"gym.run_timeout_s"} | _SERVERS
_NOT_RUN = (_GYM - _GYM_RUN) | _OWN | {"agent.workers"}
_NOT_VERL = {"nemo_rl", "algorithm.name"}
_NOT_NEMO_RL = {"verl", "trainer.device", "algorithm.entropy_coef", "agent.workers"}
_NOT_OFFLINE = (
    _GYM | _OWN | _SERVERS | _MIX | _THRESHOLD | _NOT_NEMO_RL
    | {"agent.loop", "data.prompt"}
    | {f"rollout.{name}" for name in ("samples_per_prompt", "temperature", "top_p")}
    | {f"algorithm.{name}" for name in ("updates_per_step", "normalize_by_std",
                                        "rollout_correction")}
    | {f"trainer.{name}" for name in ("max_invalid_share", "invalid_window_steps",
                                      "stall_timeout_s")}
)  # fmt: skip
_STARTED = {"env.nemo_gym": {"config_paths": ["mcqa.yaml"]}}
# By mode: the keys that make it, and those that are an error there.
MODES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "verl, single_turn": ({}, _NOT_SINGLE | _THRESHOLD | _NOT_VERL),
    "verl, tools": ({"agent.loop": "tools"}, _NOT_TOOLS | _GYM_SHARED | _THRESHOLD | _NOT_VERL),
    "verl, run": (
        {"agent.loop": "run", "agent.servers": [SERVER]},
        _NOT_RUN | _THRESHOLD | _NOT_VERL,
    ),
    "verl, async": (
        {"verl": {"trainer.v1.trainer_mode": "colocate_async"}},
        _NOT_SINGLE | _NOT_VERL,
    ),
    "nemo_rl, single_turn": ({}, _NOT_SINGLE | _THRESHOLD | _NOT_NEMO_RL),
    "nemo_rl, tools": (
        {"agent.loop": "tools", "algorithm.name": "grpo"},
        _NOT_TOOLS | _THRESHOLD | _NOT_NEMO_RL,
    ),
    "nemo_rl, run": (
        {"agent.loop": "run", "agent.servers": [SERVER], "algorithm.name": "grpo"},
        _NOT_RUN | _THRESHOLD | _NOT_NEMO_RL,
    ),
    "nemo_rl, run, Gym started": (
        {"agent.loop": "run", "nemo_rl": _STARTED, "algorithm.name": "grpo"},
        _GYM | _NOT_RUN | _SERVERS | _THRESHOLD | _NOT_NEMO_RL,
    ),
    "nemo_rl, async": (
        {"nemo_rl": {"grpo.async_grpo.enabled": True}, "algorithm.name": "grpo"},
        _NOT_SINGLE | _NOT_NEMO_RL | {"algorithm.rollout_correction"},
    ),
    "nemo_rl, sft": ({"algorithm.name": "sft"}, _NOT_OFFLINE | {"algorithm.kl_coef"}),
    "nemo_rl, dpo": ({"algorithm.name": "dpo", "algorithm.kl_coef": 0.1}, _NOT_OFFLINE),
}
# Setting one of these leaves the mode.
_MAKE_THE_MODE = ("agent.loop", "algorithm.name", "verl", "nemo_rl")


def leaves(model: type[StrictModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a config model; those of a list's entries behind `[]`."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, StrictModel):
            yield from leaves(kind, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}"
        for entry in get_args(kind):
            if isinstance(entry, type) and issubclass(entry, StrictModel):
                yield from leaves(entry, f"{prefix}{name}[].")


LEAVES = tuple(leaves(RunConfig))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("rows", "other"):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(ROW) + "\n") * ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(*settings: dict[str, Any]) -> RunConfig:
    tree: dict[str, Any] = {"policy": {"path": "/models/p"}, "data": {"train": "rows.jsonl"}}
    for key, value in (item for setting in settings for item in setting.items()):
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name.partition("[")[0]] = value
        else:
            tree[section] = value
    return RunConfig.parse(tree)


def native(mode: str, config: RunConfig) -> str:
    """All that the framework gets."""
    folder = config.trainer.output_dir
    if mode.startswith("verl"):
        made = VerlBackend().compile(config, folder)
        return repr((made.config, made.argv, made.env, made.secrets))
    keys = (grpo_keys if config.algorithm.name == "grpo" else offline_keys)(config, folder)
    return repr((keys, nemo_rl.environment(config)))


def test_somebody_decided_what_becomes_of_every_key() -> None:
    assert set(VALUES) == set(LEAVES), "give a new key a value here, and see where it ends up"


def test_every_key_of_the_client_is_about_some_request() -> None:
    groups = (idle.EVERY_CALL, idle.REWARD_SERVERS, idle.SHARED_VERDICTS, idle.SESSIONS,
              idle.AGENTS)  # fmt: skip
    assert sorted(key for group in groups for key in group) == sorted(GymSection.model_fields)


@pytest.mark.parametrize("mode", MODES)
def test_every_key_arrives_or_is_an_error_by_its_name(mode: str, folder: Path) -> None:
    made, errors = MODES[mode]
    elsewhere = ELSEWHERE if mode.startswith("verl") else ELSEWHERE_NEMO_RL
    refused, unnamed, dropped = set(), set(), set()
    for key in LEAVES:
        if key in _MAKE_THE_MODE and key in made:
            continue
        value = "none" if key.endswith("rollout_correction") and "async" in mode else VALUES[key]
        company = COMPANY.get(key, {})
        try:
            found = native(mode, configured(made, company, {key: value}))
        except ConfigError as error:
            (refused if key.partition("[")[0] in str(error) else unnamed).add(key)
            continue
        if found == native(mode, configured(made, company)):
            dropped.add(key)
    assert not unnamed
    assert refused == errors
    assert dropped <= set(elsewhere)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gym.serve": "math", "gym.url": "http://127.0.0.1:9"}, "gym.url: gym.serve starts"),
        (
            {"gym.tool_timeout_s": 7.0, "gym.session_cookie": "optional"},
            "gym.tool_timeout_s, gym.session_cookie: only agent.loop=tools has sessions",
        ),
        (
            {"agent.loop": "tools", "gym.unknown_params": "refuse"},
            "gym.unknown_params: rows are refused before single answers are judged",
        ),
        (
            {"agent.servers": [SERVER], "trainer.validate_every": 2},
            "agent.servers: only agent.loop=run .*; trainer.validate_every: there is nothing",
        ),
    ],
)
def test_keys_that_do_nothing_are_named_together_with_what_to_do(
    settings: dict[str, Any], words: str, folder: Path
) -> None:
    for mode in ("verl", "nemo_rl"):
        with pytest.raises(ConfigError, match=f"^{words}"):
            native(mode, configured(settings))


def test_a_key_set_to_nothing_is_no_error(folder: Path) -> None:
    nothing = {"agent.servers": [], "gym.serve": None, "gym.headers": {}, "data.validation": None}
    for mode in ("verl", "nemo_rl"):
        assert native(mode, configured(nothing)) == native(mode, configured())
