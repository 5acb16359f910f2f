"""Checks before the slow part: each mistake is named before anything is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlbridge.errors import ConfigError, GymError
from rlbridge.launch.preflight import check_agents, check_gym, check_policy, check_rows
from rlbridge.run_config import AgentSection, GymSection, RunConfig
from rlbridge.testing import make_row


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A whole policy folder as far as its files' shapes go."""
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0" * 4
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_a_whole_policy_passes(policy: Path) -> None:
    check_policy(policy)


def _no_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")


def _cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _no_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 32)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "config is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (_cut_short, "cut short"),
        (_no_header, "no safetensors file"),
        (_no_template, "no chat template"),
    ],
)
def test_a_damaged_policy_is_refused_by_name(policy: Path, damage: Any, words: str) -> None:
    damage(policy)
    with pytest.raises(ConfigError, match=words):
        check_policy(policy)


def test_no_gym_at_the_url_is_an_error_with_url_attempts_and_a_way_to_start_one() -> None:
    config = GymSection(url="http://127.0.0.1:9", connect_timeout_s=1.0)
    with pytest.raises(GymError) as caught:
        check_gym(config, [make_row()])
    message = str(caught.value)
    assert "http://127.0.0.1:9" in message
    assert "attempt" in message
    assert "rlbridge gym serve" in message


def test_no_agent_at_its_url_says_which_key_names_it() -> None:
    servers = [{"url": "http://127.0.0.1:9", "gateway_port": 8100}]
    agent = AgentSection.model_validate({"loop": "run", "servers": servers})
    with pytest.raises(GymError) as caught:
        check_agents(GymSection(connect_timeout_s=0.5), agent)
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "agent.servers" in str(caught.value)
    assert "gym.url" not in str(caught.value)


def test_fewer_rows_than_a_step_takes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(make_row(f"q {n}")) + "\n" for n in range(3)))
    given = {"policy": {"path": str(tmp_path)}, "data": {"train": str(path)}}
    with pytest.raises(ConfigError, match="a step takes 4 rows, and the training data hold 3"):
        check_rows(RunConfig.parse(given | {"rollout": {"prompts_per_step": 4}}))
    assert len(check_rows(RunConfig.parse(given | {"rollout": {"prompts_per_step": 3}}))) == 3
