"""Which of NeMo-RL's converters fits a checkpoint, and what none of them reads."""

from pathlib import Path

import pytest

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl.export import export_of, newest


def checkpoint(run: Path, step: int, policy: str = "Qwen/Qwen2.5-1.5B") -> Path:
    folder = run / "checkpoints" / f"step_{step}"
    (folder / "policy" / "weights").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"policy: {{model_name: {policy}}}\n")
    return folder


def test_the_newest_checkpoint_of_a_run_is_meant(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        checkpoint(tmp_path, step)
    assert newest(tmp_path).name == "step_10"
    assert newest(tmp_path / "checkpoints" / "step_2").name == "step_2"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no NeMo-RL checkpoint here"):
        newest(tmp_path)


@pytest.mark.nemo_rl
@pytest.mark.parametrize(
    ("weights", "converter", "named"),
    [
        (".metadata", "convert_dcp_to_hf.py", "weights"),  # NeMo-RL's first DTensor worker
        ("model/.metadata", "convert_dcp_to_hf.py", "weights"),  # Automodel's
        ("iter_0000000/common.pt", "convert_megatron_to_hf.py", "iter_0000000"),
    ],
)
def test_each_kind_of_weights_has_its_converter(
    tmp_path: Path, weights: str, converter: str, named: str
) -> None:
    path = checkpoint(tmp_path, 3) / "policy" / "weights" / weights
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    command = export_of(tmp_path, tmp_path / "out").command
    assert Path(command[1]).name == converter
    assert Path(command[1]).is_file()
    assert Path(command[-1]).name == named


@pytest.mark.nemo_rl
def test_what_tells_a_sampler_where_to_stop_goes_with_the_model(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    (first / "generation_config.json").write_text("{}")
    weights = checkpoint(tmp_path, 3, str(first)) / "policy" / "weights"
    (weights / ".metadata").write_bytes(b"")
    assert export_of(tmp_path, tmp_path / "out").beside == (first / "generation_config.json",)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("model/consolidated/config.json", "already; use it as it is"),
        ("model/adapter_model.safetensors", "holds a LoRA adapter"),
        ("model/shard-00001-model-00001-of-00001.safetensors", "offline_hf_consolidation.py"),
        ("model/__0_0.distcp", "was the save cut short"),
    ],
)
@pytest.mark.nemo_rl
def test_what_no_converter_reads_is_refused_with_what_to_do(
    tmp_path: Path, weights: str, message: str
) -> None:
    path = checkpoint(tmp_path, 3) / "policy" / "weights" / weights
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        export_of(tmp_path, tmp_path / "out")
