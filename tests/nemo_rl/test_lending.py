"""What workers of other Python environments import of ours."""

import os
from pathlib import Path

import pytest

from rlbridge_nemo_rl.lending import lent_source


def test_workers_are_lent_copies_of_our_packages_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    (tmp_path / "python" / "rlbridge").mkdir(parents=True)
    (tmp_path / "python" / "rlbridge" / "of_an_earlier_run.py").touch()
    folder, *others = lent_source(tmp_path).split(os.pathsep)
    assert others == ["/theirs"]
    assert {path.name for path in Path(folder).iterdir()} == {"rlbridge", "rlbridge_nemo_rl"}
    assert Path(folder, "rlbridge_nemo_rl", "processor.py").is_file()
    assert not Path(folder, "rlbridge", "of_an_earlier_run.py").exists()
    # A link would lead into this node's own cache or environment.
    assert not any(path.is_symlink() for path in Path(folder).rglob("*"))
