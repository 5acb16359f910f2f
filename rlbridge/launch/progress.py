"""What a run has done so far: joins the framework's metrics, the reward ledger and its events.

Reads files only, so that it never slows the trainer down, and appends `metrics.jsonl`: one line a
step, in rlbridge's words, the same for every framework.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlbridge import jsonl
from rlbridge.hookspecs import NativeRun, StepMetrics
from rlbridge.ledger import LedgerReader, LedgerTotals


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step for people: the framework's figures and the rewards asked for in it."""

    metrics: StepMetrics
    valid: int
    invalid: int

    def as_json(self) -> dict[str, Any]:
        """The line of `metrics.jsonl`; the framework's own figures are left in its own file."""
        metrics = self.metrics
        return {
            "step": metrics.step,
            "reward_mean": metrics.reward_mean,
            "valid": self.valid,
            "invalid": self.invalid,
            "loss": metrics.loss,
            "val_loss": metrics.val_loss,
            "margin": metrics.margin,
            "response_tokens_mean": metrics.response_tokens_mean,
            "tokens_per_s": metrics.tokens_per_s,
            "step_s": metrics.step_s,
            "rollout_probs_diff_max": metrics.rollout_probs_diff_max,
        }


@dataclass(slots=True)
class Phases:
    """Start-up phases by name, in seconds since the driver started."""

    after_s: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    """Why the driver stopped on purpose, if it did."""
    checkpoint_step: int | None = None
    """The step saved on the way out, if one was."""

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one line of `events.jsonl` into account."""
        name = str(event["event"])
        self.after_s[name] = float(event["after_s"])
        if name == "stopped":
            self.stopped = str(event["reason"])
        if name == "checkpoint_saved":
            self.checkpoint_step = int(event["step"])

    @property
    def ending(self) -> bool:
        """Whether the driver is on its way out, so that processes ending is no news."""
        return "ending" in self.after_s


class Progress:
    """Follows the files of a run.

    Args:
        run_dir: the run's folder.
        native: where the framework writes its metrics and how to read them.
    """

    def __init__(self, run_dir: Path, native: NativeRun) -> None:
        self._run_dir = run_dir
        self._read: Callable[[Mapping[str, Any]], StepMetrics | None] = native.read_metrics
        self._metrics = jsonl.Follower(native.metrics_path)
        self._events = jsonl.Follower(run_dir / "events.jsonl")
        self._ledger = LedgerReader(run_dir / "rewards")
        self._by_step: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        self.phases = Phases()
        self.steps: list[StepRow] = []
        self.invalid: list[dict[str, Any]] = []
        """Invalid outcomes seen by the last `poll`."""
        self.warnings: list[str] = []
        """What the driver warned of since the `poll` before."""

    @property
    def totals(self) -> LedgerTotals:
        """Sums over all rewards asked for so far."""
        return self._ledger.totals

    def poll(self) -> list[StepRow]:
        """Read what is new; return the steps that ended since the last call."""
        events = self._events.poll()
        for event in events:
            self.phases.add(event)
        self.warnings = [str(event["text"]) for event in events if event["event"] == "warning"]
        # The framework writes a step's line after its rewards, so lines are read first.
        lines = self._metrics.poll()
        self.invalid = []
        for outcome in self._ledger.poll():
            if outcome["split"] == "train":
                self._by_step[outcome["step"]][0 if outcome["valid"] else 1] += 1
            if not outcome["valid"]:
                self.invalid.append(outcome)
        fresh = []
        for line in lines:
            metrics = self._read(line)
            if metrics is not None:
                valid, invalid = self._by_step[metrics.step]
                fresh.append(StepRow(metrics, valid, invalid))
        for row in fresh:
            jsonl.append(self._run_dir / "metrics.jsonl", row.as_json())
        self.steps += fresh
        return fresh
