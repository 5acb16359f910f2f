"""Which of NeMo-RL's converters fits a checkpoint, and what `rlbridge export` prints."""

from pathlib import Path

import pytest

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl.export import export_command, newest


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step_{step}"
    (folder / "policy" / "weights").mkdir(parents=True)
    (folder / "config.yaml").write_text("policy: {}\n")
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
def test_dcp_and_megatron_weights_have_their_own_converters(tmp_path: Path) -> None:
    step = checkpoint(tmp_path, 3)
    command = export_command(tmp_path, tmp_path / "out")
    assert Path(command[1]).name == "convert_dcp_to_hf.py"
    assert Path(command[1]).is_file()
    (step / "policy" / "weights" / "iter_0000000").mkdir()
    command = export_command(tmp_path, tmp_path / "out")
    assert Path(command[1]).name == "convert_megatron_to_hf.py"
    assert command[-1].endswith("iter_0000000")


@pytest.mark.nemo_rl
def test_what_is_in_hugging_faces_format_already_is_not_converted(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path, 3) / "policy" / "weights" / "model" / "consolidated"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="already; use it as it is"):
        export_command(tmp_path, tmp_path / "out")
