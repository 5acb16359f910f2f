"""The launcher's parts: processes end, progress joins files, summaries tell what is known."""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from rich.console import Console

from rlbridge.contracts.reward import FailureClass, InvalidReward, ValidReward
from rlbridge.hookspecs import NativeRun, StepMetrics
from rlbridge.jsonl import append
from rlbridge.launch import processes
from rlbridge.launch.progress import Progress
from rlbridge.launch.run import move_aside, write_secret
from rlbridge.launch.screen import Screen
from rlbridge.launch.summary import draw_losses, draw_rewards, summarize, write_summary
from rlbridge.ledger import RewardLedger


def _read(line: Mapping[str, Any]) -> StepMetrics | None:
    return StepMetrics(line["step"], reward_mean=line["reward"], step_s=2.0)


@pytest.fixture
def native(tmp_path: Path) -> NativeRun:
    return NativeRun({}, [], {}, "", tmp_path / "native.jsonl", _read)


def _fill(run_dir: Path, native: NativeRun) -> Progress:
    ledger = RewardLedger(run_dir / "rewards")
    for step, reward in ((1, 0.25), (2, 0.75)):
        for sample in range(2):
            ledger.record(ValidReward(reward, attempts=1), step=step, row=0, uid="u", sample=sample)
        append(native.metrics_path, {"step": step, "reward": reward})
    bad = InvalidReward(FailureClass.BAD_ROW, "422: no expected_answer", attempts=1)
    ledger.record(bad, step=2, row=7, uid="v", sample=0)
    ledger.close()
    append(run_dir / "events.jsonl", {"event": "training", "after_s": 12.0})
    progress = Progress(run_dir, native)
    progress.poll()
    return progress


def test_progress_joins_metrics_rewards_and_events(tmp_path: Path, native: NativeRun) -> None:
    progress = _fill(tmp_path, native)
    assert [(row.valid, row.invalid) for row in progress.steps] == [(2, 0), (2, 1)]
    assert progress.invalid[0]["row"] == 7
    lines = [orjson.loads(x) for x in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]
    assert [line["reward_mean"] for line in lines] == [0.25, 0.75]
    assert progress.poll() == []


def test_a_warning_of_the_driver_is_told_once(tmp_path: Path, native: NativeRun) -> None:
    progress = Progress(tmp_path, native)
    append(tmp_path / "events.jsonl", {"event": "warning", "after_s": 1.0, "text": "two rows"})
    progress.poll()
    assert progress.warnings == ["two rows"]
    progress.poll()
    assert progress.warnings == []


def test_a_summary_counts_rewards_and_leaves_unknown_figures_null(
    tmp_path: Path, native: NativeRun
) -> None:
    summary = summarize(_fill(tmp_path, native), peak_rss_mb=10.4)
    assert summary["reward_first3"] == pytest.approx(0.5)
    assert summary["verify"]["attempts"] == 5
    assert (summary["verify"]["valid"], summary["verify"]["invalid"]) == (4, 1)
    assert summary["rollout_probs_diff_max"] is None
    assert summary["startup_s"] == pytest.approx(12.0)
    write_summary(tmp_path / "summary.json", summary)
    assert orjson.loads((tmp_path / "summary.json").read_bytes()) == summary


def test_a_run_without_a_step_has_no_reward_instead_of_zero(
    tmp_path: Path, native: NativeRun
) -> None:
    summary = summarize(Progress(tmp_path, native), peak_rss_mb=0.0)
    assert summary["reward_first3"] is None
    assert summary["seconds_per_step"] is None


def test_the_picture_is_a_png(tmp_path: Path, native: NativeRun) -> None:
    pytest.importorskip("matplotlib", reason="reward.png needs the plot extra")
    assert draw_rewards(tmp_path / "reward.png", _fill(tmp_path, native).steps, "title")
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_screen_shows_each_step_and_each_masked_row(
    tmp_path: Path, native: NativeRun, terminal: bool
) -> None:
    progress = _fill(tmp_path, native)
    console = Console(
        record=True, force_terminal=terminal, width=120, file=(tmp_path / "o").open("w")
    )
    with Screen("title", 2, console) as screen:
        screen.note("row 7: masked")
        screen.show(progress.steps, progress, 1.0)
    console.file.close()
    text = console.export_text()
    assert "2/2" in text
    assert "0.750" in text
    assert terminal or "row 7: masked" in text


@pytest.fixture
def offline(tmp_path: Path) -> Progress:
    """Two steps of a run without rewards, the second one validated."""

    def read(line: Mapping[str, Any]) -> StepMetrics:
        return StepMetrics(line["step"], loss=line["loss"], val_loss=line["val"], step_s=2.0)

    native = NativeRun({}, [], {}, "", tmp_path / "native.jsonl", read)
    append(native.metrics_path, {"step": 1, "loss": 0.5, "val": None})
    append(native.metrics_path, {"step": 2, "loss": 0.25, "val": 0.375})
    progress = Progress(tmp_path, native)
    progress.poll()
    return progress


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_without_rewards_shows_its_loss(
    tmp_path: Path, offline: Progress, terminal: bool
) -> None:
    console = Console(
        record=True, force_terminal=terminal, width=120, file=(tmp_path / "o").open("w")
    )
    with Screen("title", 2, console, rewarded=False) as screen:
        screen.show(offline.steps, offline, 1.0)
    console.file.close()
    text = console.export_text()
    assert "0.2500" in text
    assert "0.3750" in text
    assert "reward" not in text
    summary = summarize(offline, peak_rss_mb=0.0)
    assert summary["loss_first3"] == pytest.approx(0.375)
    assert summary["val_loss_last"] == pytest.approx(0.375)
    assert summary["reward_first3"] is None


def test_its_picture_is_a_png(tmp_path: Path, offline: Progress) -> None:
    pytest.importorskip("matplotlib", reason="loss.png needs the plot extra")
    assert draw_losses(tmp_path / "loss.png", offline.steps, "title")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_an_earlier_run_is_moved_aside_whole(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("old")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "policy").mkdir()
    move_aside(tmp_path, keep_checkpoints=True)
    assert (tmp_path / "checkpoints").exists()
    move_aside(tmp_path, keep_checkpoints=False)
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "policy").exists()
    kept = sorted(path.name for path in (tmp_path / "earlier").glob("*/*"))
    assert kept == ["checkpoints", "summary.json"]


def test_a_secret_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "headers.json"
    path.write_text("an older one, readable by all")
    write_secret(path, b"{}")
    assert path.read_bytes() == b"{}"
    assert path.stat().st_mode & 0o077 == 0


def test_nothing_left_behind_ends_grandchildren_whose_parent_died(tmp_path: Path) -> None:
    # In a process of its own: the reaper role stays with whoever takes it.
    grandchild = "import time; time.sleep(60)"
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}])"
    launcher = (
        "import subprocess, sys, time, psutil\n"
        "from rlbridge.launch import processes\n"
        "processes.adopt_orphans()\n"
        "with processes.nothing_left_behind():\n"
        f"    subprocess.run([sys.executable, '-c', {child!r}])\n"
        "    time.sleep(0.2)\n"
        "    print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", launcher], capture_output=True, text=True, check=True, timeout=60
    )
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 1
    assert not psutil.pid_exists(pids[0])


def test_the_watch_reports_a_component_that_died(tmp_path: Path) -> None:
    code = "import time; time.sleep(60)  # LoadBearingActor"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        watch = processes.ComponentWatch(psutil.Process().pid, ("LoadBearingActor",))
        deadline = time.monotonic() + 60
        while watch.poll() == [] and not watch._seen and time.monotonic() < deadline:
            time.sleep(0.05)
        assert watch.peak_mb > 1
        child.kill()
        child.wait(timeout=10)
        assert "LoadBearingActor" in watch.poll()[0]
        assert watch.poll() == []
    finally:
        child.kill()
        child.wait(timeout=10)
