"""The commands for clusters: whole, and legal shell."""

import shlex
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from rlbridge.cli.main import app


def _dry_run(*overrides: str) -> str:
    pytest.importorskip("verl", reason="the verl extra is not installed: make setup")
    command = ["run", "--config", "examples/verl/eight_gpus.yaml", "--dry-run", *overrides]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_dry_run_on_several_nodes_prints_what_to_submit() -> None:
    text = _dry_run("trainer.nodes=4", "data.train=a b.jsonl")
    job = next(line for line in text.splitlines() if line.startswith("ray job submit"))
    inner = shlex.split(job.partition(" -- ")[2])
    assert inner[:3] == ["rlbridge", "run", "--framework"]
    assert {"trainer.nodes=4", "data.train=a b.jsonl", "ray.address=auto"} <= set(inner)
    assert "--dry-run" not in inner
    script = text[text.index("#!/bin/bash") :]
    assert "#SBATCH --nodes=4" in script
    assert "#SBATCH --gpus-per-node=8" in script
    bash = shutil.which("bash")
    assert bash is not None
    checked = subprocess.run([bash, "-n"], input=script.encode(), capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_dry_run_on_one_node_prints_nothing_of_clusters() -> None:
    assert "sbatch" not in _dry_run()
