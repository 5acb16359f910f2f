"""Where rlbridge came from, as installers note it, and what `uv run` is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlbridge_nemo_rl import origin


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a note of where rlbridge came from before the real one."""

    def note(told: dict[str, Any] | None) -> None:
        folder = tmp_path / "rlbridge-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: rlbridge\nVersion: 1.2\n")
        if told is not None:
            (folder / "direct_url.json").write_text(json.dumps(told))
        monkeypatch.syspath_prepend(str(tmp_path))

    return note


def test_from_an_index_it_is_the_version_that_runs(installed: Any) -> None:
    installed(None)
    assert origin.uv_option() == "--with rlbridge==1.2"
    assert origin.uv_option("gateway") == "--with 'rlbridge[gateway]==1.2'"
    assert origin.folder() is None


def test_from_a_folder_it_is_that_folder_and_no_package_of_its_name(installed: Any) -> None:
    installed({"url": "file:///home/me/my%20clone", "dir_info": {}})
    assert origin.uv_option() == "--with 'rlbridge @ file:///home/me/my%20clone'"
    assert origin.folder() == Path("/home/me/my clone")


def test_an_editable_clone_stays_one(installed: Any) -> None:
    installed({"url": "file:///home/me/clone", "dir_info": {"editable": True}})
    assert origin.uv_option() == "--with-editable /home/me/clone"
    assert origin.uv_option("gateway") == "--with-editable '/home/me/clone[gateway]'"


def test_from_a_repository_it_is_its_commit(installed: Any) -> None:
    vcs = {"vcs": "git", "commit_id": "0123abc"}
    installed({"url": "https://git.example/rlbridge", "vcs_info": vcs})
    assert origin.uv_option() == "--with 'rlbridge @ git+https://git.example/rlbridge@0123abc'"
    assert origin.folder() is None
