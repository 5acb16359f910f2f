"""Rows of raw fields in verl: the prompt is made once, and all else reaches the reward."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

import hydra
import orjson
from omegaconf import OmegaConf

from benchmarks.templates import CHATML
from benchmarks.tokenizers import byte_bpe
from rlbridge.errors import ConfigError
from rlbridge.prompts import MARK, PromptConfig
from rlbridge.run_config import RunConfig
from rlbridge.testing import make_row
from rlbridge_verl.backend import VerlBackend
from rlbridge_verl.dataset import NeMoGymDataset
from rlbridge_verl.keys import native_keys
from tests.json_lines import write_lines

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]

MATH = PromptConfig.load("generic/math")
RAW = {"problem": "1 + {x} é?", "truth": [None, 2**64 - 1, 0.1], "agent_ref": {"name": "math"}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_bpe(CHATML)


def written(path: Path, *rows: dict[str, Any]) -> str:
    return str(write_lines(path, rows))


def dataset(tokenizer: Any, files: list[str], **data: Any) -> Any:
    section = {"max_prompt_length": 300, "train_files": files, **data}
    return NeMoGymDataset(files, tokenizer, OmegaConf.create(section))


def gym_rows(made: Any) -> list[dict[str, Any]]:
    return [orjson.loads(made[index]["extra_info"]["gym_row"]) for index in range(len(made))]


def test_raw_fields_become_the_prompt_and_all_else_reaches_the_reward(
    tokenizer: Any, tmp_path: Path
) -> None:
    made = dataset(
        tokenizer, [written(tmp_path / "rows.jsonl", RAW)], nemo_gym_prompt="generic/math"
    )
    assert made[0]["raw_prompt"] == MATH.messages(RAW)
    [row] = gym_rows(made)
    assert row == MATH.apply(RAW)
    assert json.dumps(row["truth"]) == json.dumps(RAW["truth"])


def test_a_parquet_files_rows_get_their_prompts_too(tokenizer: Any, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"gym_row": [json.dumps(RAW)]}), path)
    made = dataset(tokenizer, [str(path)], nemo_gym_prompt="generic/math")
    assert gym_rows(made) == [MATH.apply(RAW)]


def test_each_training_file_has_its_own_prompt_and_validation_the_first_ones(
    tokenizer: Any, tmp_path: Path
) -> None:
    files = [
        written(tmp_path / "raw.jsonl", RAW),
        written(tmp_path / "whole.jsonl", make_row("has its prompt")),
    ]
    validation = [written(tmp_path / f"val{number}.jsonl", RAW) for number in range(3)]
    keys = {"nemo_gym_prompt": ["generic/math", None], "val_files": validation}
    marks = [row.get(MARK) for row in gym_rows(dataset(tokenizer, files, **keys))]
    assert marks == [MATH.digest, None]
    validated = dataset(tokenizer, validation, **keys | {"train_files": files})
    assert [row[MARK] for row in gym_rows(validated)] == [MATH.digest] * 3
    with pytest.raises(ConfigError, match="2 prompts for 1 training files"):
        dataset(tokenizer, files[:1], **keys)


def test_a_row_with_a_prompt_is_refused_by_line(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", RAW, make_row("q", problem="q"))
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: .*holds a prompt already"):
        dataset(tokenizer, [path], nemo_gym_prompt="generic/math")


def test_a_run_configs_prompts_reach_the_dataset_through_hydra(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("user: 'Q: {problem}'\n")
    mix = [{"path": "a.jsonl"}, {"path": "b.jsonl", "prompt": "own.yaml"}]
    data = {"train": "rows.jsonl", "prompt": "generic/math", "mix": mix}
    config = RunConfig.parse({"policy": {"path": "p"}, "data": data})
    native = VerlBackend().compile(config, tmp_path / "out")
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        composed = hydra.compose("ppo_trainer", overrides=native.argv[3:])
    wanted = ["generic/math", None, str(tmp_path / "own.yaml")]
    assert list(composed.data.nemo_gym_prompt) == wanted
    for name in ("rows", "b"):
        written(tmp_path / f"{name}.jsonl", RAW)
    written(tmp_path / "a.jsonl", make_row("has its prompt"))
    made = NeMoGymDataset(composed.data.train_files, tokenizer, composed.data)
    own = PromptConfig(user="Q: {problem}")
    assert {row.get(MARK) for row in gym_rows(made)} == {MATH.digest, None, own.digest}
    plain = RunConfig.parse({"policy": {"path": "p"}, "data": {"train": "rows.jsonl"}})
    assert "+data.nemo_gym_prompt" not in native_keys(plain, tmp_path)
