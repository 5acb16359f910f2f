"""NeMo-RL's own tests of environments, rollouts and advantages still pass with rlbridge in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nemo_rl.conftest import ROOT

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("cluster")]

# Those of v0.7.0 that need no GPU, no download and no package beyond this environment's.
FILES = (
    "environments/test_environment_utils.py",
    "environments/test_math_environment.py",
    "environments/test_code_jaccard_environment.py",
    "environments/test_nemo_gym_utils.py",
    "experience/test_rollouts.py",
    "algorithms/test_advantage_estimator.py",
)


def test_their_tests_pass_with_rlbridge_registered(tmp_path: Path) -> None:
    from rlbridge_nemo_rl import versions

    # A copy, because their session writes its results beside the tests.
    shutil.copytree(versions.checkout() / "tests", tmp_path / "tests")
    shutil.copy(versions.checkout() / "pyproject.toml", tmp_path)
    present = [f"tests/unit/{name}" for name in FILES if (tmp_path / "tests/unit" / name).exists()]
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "tests_with_rlbridge"]
    shutil.copy(Path(__file__).with_name("registering.py"), tmp_path / "tests_with_rlbridge.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *present],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert "passed" in summary
    assert "failed" not in summary
