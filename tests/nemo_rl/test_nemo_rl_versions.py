"""Which NeMo-RL rlbridge works with, and what it says of others."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from rlbridge.errors import PluginError
from rlbridge_nemo_rl import versions
from tests.nemo_rl.conftest import HAVE_NEMO_RL, ROOT

REGISTER = "from rlbridge_nemo_rl import register; register()"


def package(folder: Path, *modules: str) -> Path:
    """A `nemo_rl` of empty modules."""
    for name in ("nemo_rl", *modules):
        path = folder / name.replace(".", "/") / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def dry_run(folder: Path) -> subprocess.CompletedProcess[str]:
    example = "examples/nemo_rl/math.yaml"
    run = ["-m", "rlbridge", "run", "--framework", "nemo_rl", "--config", example, "--dry-run"]
    return python(folder, *run)


def test_pypis_placeholder_is_not_taken_for_nemo_rl(tmp_path: Path) -> None:
    folder = package(tmp_path)
    done = dry_run(folder)
    assert done.returncode == 1
    assert "needs nemo_rl.algorithms" in done.stderr
    assert "placeholder" in done.stderr
    assert "git clone" in done.stderr
    mine = python(folder, "-c", REGISTER)
    assert f"the nemo_rl at {tmp_path / 'nemo_rl'} is not NeMo-RL" in mine.stderr


def test_a_nemo_rl_that_lacks_what_is_needed_is_named_with_its_place(tmp_path: Path) -> None:
    folder = package(tmp_path, "nemo_rl.algorithms", "nemo_rl.data")
    (folder / "nemo_rl" / "__init__.py").write_text("__version__ = '0.5.0'")
    done = dry_run(folder)
    assert done.returncode == 1
    assert f"NeMo-RL 0.5.0 at {tmp_path} has no nemo_rl.data.utils.setup_resp" in done.stderr
    assert "git checkout v0.7.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_loop_that_our_masks_would_miss_is_refused(tmp_path: Path) -> None:
    folder = package(tmp_path, "nemo_rl.algorithms", "nemo_rl.data")
    (folder / "nemo_rl/data/utils.py").write_text("def setup_response_data(): ...")
    names = [*versions.rollouts(), "_create_advantage_estimator"]
    loop = "from math import " + ", ".join(f"pi as {name}" for name in names)
    loop += "\ndef grpo_train(manager): manager.run()"
    (folder / "nemo_rl/algorithms/grpo.py").write_text(loop)
    done = python(folder, "-c", "from rlbridge_nemo_rl import versions; versions.check()")
    assert f"{names[0]} that grpo_train calls: a missing reward could not be" in done.stderr


@pytest.mark.skipif(HAVE_NEMO_RL, reason="NeMo-RL is here")
def test_registering_without_nemo_rl_says_where_to_run() -> None:
    with pytest.raises(PluginError, match="isn't importable here; run inside a clone"):
        versions.check()


@pytest.mark.nemo_rl
def test_what_setup_makes_is_named_as_its_annotation_says() -> None:
    from nemo_rl.algorithms import grpo

    kinds = get_args(grpo.setup.__annotations__["return"])
    made = versions.parts(kinds)
    assert made.logger is grpo.Logger
    assert made.checkpointer is grpo.CheckpointManager
    assert made.save_state is grpo.GRPOSaveState
    assert made.master_config is grpo.MasterConfig
    assert "LossFn" in made.loss_fn.__name__
    with pytest.raises(PluginError, match="returns 11 values"):
        versions.parts(tuple(range(11)))


@pytest.mark.nemo_rl
def test_validation_passes_through_the_same_rollouts() -> None:
    from nemo_rl.algorithms import grpo

    called = set(grpo.validate.__code__.co_names)
    assert {*versions.rollouts(), versions.gym_rollout()} <= called


@pytest.mark.nemo_rl
@pytest.mark.usefixtures("cluster")
def test_workers_import_the_checkout_that_the_driver_imports() -> None:
    import nemo_rl
    import ray

    @ray.remote(num_cpus=0)
    def imported() -> Any:
        import nemo_rl

        return nemo_rl.__file__

    assert ray.get(imported.remote()) == nemo_rl.__file__
