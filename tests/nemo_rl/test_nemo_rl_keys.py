"""What a run config becomes for NeMo-RL, and what is refused by name. Needs no NeMo-RL."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlbridge.errors import ConfigError
from rlbridge.run_config import RunConfig
from rlbridge.testing import make_row
from rlbridge_nemo_rl.keys import grpo_keys
from rlbridge_nemo_rl.offline_keys import CONVERSATIONS, PAIRS, offline_keys

SFT_ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
DPO_ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}
ANSWER = {"rank": 0, "completion": [{"role": "assistant", "content": "a"}]}
PREFERENCE_ROW = {
    "context": [{"role": "user", "content": "q"}],
    "completions": [ANSWER | {"rank": 1}, ANSWER],
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row("q")) + "\n" + json.dumps(make_row("r")) + "\n")
    return path


def config(rows: Path, **sections: Any) -> RunConfig:
    given = {"policy": {"path": "/models/p"}, "data": {"train": str(rows)}}
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    return RunConfig.parse(given)


def test_each_key_of_a_run_has_its_place(rows: Path, tmp_path: Path) -> None:
    keys = grpo_keys(
        config(
            rows,
            gym={"url": "http://127.0.0.1:9", "headers": {"X-Key": "secret"}},
            data={"validation": str(rows), "max_prompt_tokens": 100, "shuffle": False},
            agent={"loop": "tools", "max_turns": 7},
            algorithm={
                "learning_rate": 2e-6,
                "updates_per_step": 2,
                "kl_coef": 0.01,
                "normalize_by_std": False,
                "rollout_correction": "token",
                "correction_threshold": 3.0,
            },
            rollout={
                "prompts_per_step": 6,
                "samples_per_prompt": 4,
                "max_response_tokens": 50,
                "temperature": 0.7,
                "top_p": 0.9,
            },
            trainer={"steps": 11, "nodes": 2, "seed": 5, "save_every": 4, "validate_every": 3},
        ),
        tmp_path / "run",
    )
    wanted = {
        "policy.model_name": "/models/p",
        "policy.max_total_sequence_length": 150,
        "policy.train_global_batch_size": 12,
        "policy.train_micro_batch_size": 3,
        "policy.optimizer.kwargs.lr": 2e-6,
        "policy.generation.max_new_tokens": 50,
        "policy.generation.temperature": 0.7,
        "policy.generation.top_p": 0.9,
        "grpo.num_prompts_per_step": 6,
        "grpo.num_generations_per_prompt": 4,
        "grpo.max_rollout_turns": 7,
        "grpo.normalize_rewards": False,
        "grpo.use_leave_one_out_baseline": False,
        "grpo.skip_reference_policy_logprobs_calculation": False,
        "grpo.max_num_steps": 11,
        "grpo.seed": 5,
        "grpo.val_period": 3,
        "grpo.max_val_samples": 2,
        "loss_fn.reference_policy_kl_penalty": 0.01,
        "loss_fn.truncated_importance_sampling_type": "tis",
        "loss_fn.truncated_importance_sampling_ratio": 3.0,
        "cluster.num_nodes": 2,
        "checkpointing.enabled": True,
        "checkpointing.save_period": 4,
        "checkpointing.metric_name": "val:accuracy",
    }
    assert {key: keys[key] for key in wanted} == wanted
    assert keys["data"]["max_input_seq_length"] == 100
    assert keys["data"]["shuffle"] is False
    environment = keys["env"]["rlbridge_gym"]
    assert environment["max_turns"] == 7
    assert environment["policy"] == "/models/p"
    assert "secret" not in json.dumps(keys)


def test_each_file_has_its_prompt_and_validation_the_training_files(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("user: '{problem}'")
    mix = [{"path": "a.jsonl"}, {"path": "b.jsonl", "prompt": "own.yaml", "weight": 2.0}]
    data = {"prompt": "generic/math", "mix": mix, "validation": str(rows)}
    validated = config(rows, data=data, trainer={"validate_every": 2})
    section = grpo_keys(validated, tmp_path)["data"]
    assert section["train"]["prompt"] == section["validation"]["prompt"] == "generic/math"
    own = str(tmp_path / "own.yaml")  # the driver runs in another folder
    assert section["train"]["mix"] == [
        {"data_path": str(tmp_path / "a.jsonl"), "weight": 1.0},
        {"data_path": str(tmp_path / "b.jsonl"), "prompt": own, "weight": 2.0},
    ]


SERVER = {"url": "http://127.0.0.1:8001", "gateway_port": 8100}


def test_agents_that_run_already_play_the_rows(rows: Path, tmp_path: Path) -> None:
    servers = [SERVER, {**SERVER, "gateway_port": 8101}]
    keys = grpo_keys(
        config(
            rows,
            agent={"loop": "run", "servers": servers, "workers": 2},
            gym={"run_timeout_s": 99.0, "max_concurrency": 64},
            data={"validation": str(rows)},
            trainer={"validate_every": 3},
        ),
        tmp_path / "run",
    )
    wanted = {
        "env.should_use_nemo_gym": True,
        "policy.generation.vllm_cfg.async_engine": True,
        "policy.generation.vllm_cfg.expose_http_server": True,
        "policy.generation.stop_strings": None,
        "policy.generation.top_k": None,
        "grpo.max_val_samples": None,
        "grpo.val_period": 3,
        "rlbridge.agents": {
            "servers": servers,
            "client": {"run_timeout_s": 99.0, "max_concurrency": 64},
        },
    }
    assert {key: keys[key] for key in wanted} == wanted
    assert "env" not in keys  # no environment of ours judges
    for part in ("train", "validation"):
        assert keys["data"][part]["dataset_name"] == "rlbridge_nemo_rl.GymAgentDataset"
        assert keys["data"][part]["split"] == part
    assert keys["data"]["default"]["env_name"] == "nemo_gym"


def test_nemo_rl_may_start_gym_itself(rows: Path, tmp_path: Path) -> None:
    native = {"env": {"nemo_gym": {"config_paths": ["mcqa.yaml"]}}}
    keys = grpo_keys(config(rows, agent={"loop": "run"}, nemo_rl=native), tmp_path)
    assert keys["rlbridge.agents"] == {}
    assert "agent" not in keys["data"]["train"]  # rows name theirs


@pytest.mark.parametrize(
    ("agent", "native", "named"),
    [
        ({}, {}, r"agent\.servers: .*nemo_rl\.env\.nemo_gym\.config_paths"),
        ({"servers": [SERVER]}, {"env.nemo_gym.config_paths": ["x"]}, "agent.servers and nemo_rl"),
        ({"servers": [SERVER], "workers": 2}, {}, "agent.workers"),
        ({"servers": [SERVER], "max_turns": 4}, {}, "agent.max_turns"),
        ({"servers": [SERVER], "parallel_tool_calls": True}, {}, "agent.parallel_tool_calls"),
        (
            {},
            {"env.nemo_gym": {"config_paths": ["x"], "is_trajectory_collection": True}},
            "nemo_rl.env.nemo_gym.is_trajectory_collection",
        ),
    ],
)
def test_what_gyms_agents_decide_themselves_is_refused_by_name(
    rows: Path, tmp_path: Path, agent: dict[str, Any], native: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{named}"):
        grpo_keys(config(rows, agent={"loop": "run", **agent}, nemo_rl=native), tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("trainer", "device", "cpu", "trainer.device"),
        ("algorithm", "entropy_coef", 0.1, "algorithm.entropy_coef"),
        ("algorithm", "rollout_correction", "sequence", "algorithm.rollout_correction"),
        ("algorithm", "updates_per_step", 7, "algorithm.updates_per_step"),
        ("agent", "workers", 2, "agent.workers"),
        ("trainer", "gpus_per_node", 7, "rollout.prompts_per_step"),
        ("trainer", "validate_every", 2, "trainer.validate_every"),
        ("verl", "trainer.logger", "x", "verl"),
    ],
)
def test_what_nemo_rl_cannot_honour_is_refused_by_name(
    rows: Path, tmp_path: Path, section: str, key: str, value: Any, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{named}"):
        grpo_keys(config(rows, **{section: {key: value}}), tmp_path)


def offline(tmp_path: Path, name: str, *rows: Any, **sections: Any) -> dict[str, Any]:
    path = tmp_path / "offline.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kl = {"kl_coef": 0.1} if name == "dpo" else {}
    given = {"algorithm": {"name": name} | kl, "rollout": {"prompts_per_step": 1}}
    return offline_keys(config(path, **(given | sections)), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("sft", SFT_ROW),
        ("sft", {"input": "q", "output": "a"}),
        ("dpo", DPO_ROW),
        ("dpo", {"prompt": SFT_ROW["messages"][:1], "chosen": "a", "rejected": "b"}),
        ("dpo", PREFERENCE_ROW),
    ],
)
def test_rows_of_transform_find_their_dataset(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    keys = offline(tmp_path, name, row)
    assert keys["data"]["train"]["dataset_name"] == {"sft": CONVERSATIONS, "dpo": PAIRS}[name]
    assert keys[f"{name}.max_num_steps"] == 30
    assert not any(value for key, value in keys.items() if key.startswith("logger.") and
                   key.endswith("_enabled"))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("dpo", SFT_ROW, r"a row for dpo is .*`rlbridge transform dpo`"),
        ("sft", {"messages": []}, r"\$\.messages must be a list of messages"),
        ("sft", {"messages": ["q"]}, r"\$\.messages\[0\] is no message with a role"),
        ("sft", {"messages": SFT_ROW["messages"][:1]}, r"\$\.messages ends with the user's words"),
        ("sft", {"input": "q", "output": " "}, "ends with an empty answer"),
        ("sft", {"input": ["q"], "output": "a"}, r"\$\.input must be text, not list"),
        ("dpo", DPO_ROW | {"chosen": SFT_ROW["messages"]}, r"\$\.chosen has 2 messages, and"),
        ("dpo", PREFERENCE_ROW | {"completions": []}, "must be two objects"),
        ("dpo", PREFERENCE_ROW | {"completions": [ANSWER, ANSWER]}, "have the same rank"),
    ],
)
def test_rows_that_hold_nothing_to_learn_are_refused_by_line_and_path(
    tmp_path: Path, name: str, row: dict[str, Any], message: str
) -> None:
    good = {"sft": SFT_ROW, "dpo": DPO_ROW}[name]
    with pytest.raises(ConfigError, match=rf"offline\.jsonl:2: .*{message}"):
        offline(tmp_path, name, good, row)


def test_a_step_of_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^rollout\.prompts_per_step: .* 8 rows, and .* holds 1"):
        offline(tmp_path, "sft", SFT_ROW, rollout={"prompts_per_step": 8})


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("gym", {"url": "http://127.0.0.1:9"}, "gym.url"),
        ("agent", {"loop": "tools"}, "agent.loop"),
        ("rollout", {"prompts_per_step": 1, "temperature": 0.5}, "rollout.temperature"),
        ("algorithm", {"name": "sft", "entropy_coef": 0.1}, "algorithm.entropy_coef"),
        ("trainer", {"stall_timeout_s": 9.0}, "trainer.stall_timeout_s"),
    ],
)
def test_what_means_nothing_without_rollouts_is_refused_by_name(
    tmp_path: Path, section: str, values: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: means nothing to algorithm\.name=sft"):
        offline(tmp_path, "sft", SFT_ROW, **{section: values})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"validation": "r.parquet"}, "trainer": {"validate_every": 2}},
            "data: r.parquet is packed; .*transform sft",
        ),
        ({"data": {"prompt": "generic/math"}}, "data.prompt: rows for sft hold whole"),
        ({"algorithm": {"name": "sft", "kl_coef": 0.1}}, "algorithm.kl_coef: SFT has no"),
        ({"algorithm": {"name": "dpo"}}, "algorithm.kl_coef: DPO needs one above 0"),
        ({"trainer": {"gpus_per_node": 2}}, "rollout.prompts_per_step: 1 rows can't be split"),
        ({"trainer": {"validate_every": 2}}, "trainer.validate_every: .* set data.validation"),
    ],
)
def test_what_sft_and_dpo_cannot_do_is_refused_by_name(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        offline(tmp_path, "sft", SFT_ROW, **sections)


def test_verl_refuses_what_only_nemo_rl_launches(tmp_path: Path, rows: Path) -> None:
    backend = pytest.importorskip("rlbridge_verl.backend")
    with pytest.raises(ConfigError, match=r"algorithm\.name=sft"):
        backend.VerlBackend().compile(config(rows, algorithm={"name": "sft"}), tmp_path)
