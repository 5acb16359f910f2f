"""What a run leaves for people: `summary.json` and a picture. Unknown figures are null."""

import os
import statistics
from pathlib import Path
from typing import Any

import orjson

from rlbridge.launch.progress import Progress, StepRow


def summarize(progress: Progress, peak_rss_mb: float) -> dict[str, Any]:
    """The run in figures; rewards are means over valid ones, times are in seconds."""
    steps = progress.steps
    totals = progress.totals
    rewards = [row.metrics.reward_mean for row in steps if row.metrics.reward_mean is not None]
    losses = [row.metrics.loss for row in steps if row.metrics.loss is not None]
    validated = [row.metrics.val_loss for row in steps if row.metrics.val_loss is not None]
    # The first step warms caches up and says nothing about the pace.
    paces = [row.metrics.step_s for row in steps[1:] if row.metrics.step_s is not None]
    diffs = [
        row.metrics.rollout_probs_diff_max
        for row in steps
        if row.metrics.rollout_probs_diff_max is not None
    ]
    return {
        "steps": len(steps),
        "reward_first3": statistics.fmean(rewards[:3]) if rewards else None,
        "reward_last3": statistics.fmean(rewards[-3:]) if rewards else None,
        "loss_first3": statistics.fmean(losses[:3]) if losses else None,
        "loss_last3": statistics.fmean(losses[-3:]) if losses else None,
        "val_loss_last": validated[-1] if validated else None,
        "seconds_per_step": statistics.median(paces) if paces else None,
        "rollout_probs_diff_max": max(diffs) if diffs else None,
        "peak_rss_mb": round(peak_rss_mb),
        "verify": {
            "attempts": totals.attempts,
            "shared": totals.shared,
            "valid": totals.valid,
            "invalid": totals.invalid,
            "invalid_by_class": dict(totals.failures),
        },
        "startup_s": progress.phases.after_s.get("training"),
        "startup_phases_s": dict(progress.phases.after_s),
        "stopped": progress.phases.stopped,
    }


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` in one move, so that nobody reads half of it."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2))
    os.replace(partial, path)  # noqa: PTH105  atomic on one file system


def draw_rewards(path: Path, steps: list[StepRow], title: str) -> bool:
    """Draw the mean reward a step, a running mean and invalid rewards; False without matplotlib."""
    drawn = _axes("reward", title)
    if drawn is None:
        return False
    figure, axes = drawn
    _curve(axes, [(row.metrics.step, row.metrics.reward_mean) for row in steps], "mean reward")
    bad = [(row.metrics.step, row.invalid) for row in steps if row.invalid]
    for step, count in bad:
        axes.axvline(step, color="#de2d26", alpha=0.4, linewidth=1)
        axes.annotate(str(count), (step, 1.0), xycoords=("data", "axes fraction"), fontsize=7)
    if bad:
        axes.plot([], [], color="#de2d26", alpha=0.4, label="invalid rewards (masked)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    return True


def draw_losses(path: Path, steps: list[StepRow], title: str) -> bool:
    """Draw the loss a step, a running mean and the validation's loss; False without matplotlib."""
    drawn = _axes("loss", title)
    if drawn is None:
        return False
    figure, axes = drawn
    _curve(axes, [(row.metrics.step, row.metrics.loss) for row in steps], "loss")
    validated = [(row.metrics.step, row.metrics.val_loss) for row in steps]
    known = [(step, loss) for step, loss in validated if loss is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "s-", color="#de2d26", label="validation loss")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    return True


def _axes(quantity: str, title: str) -> tuple[Any, Any] | None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel="step", ylabel=quantity, title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def _curve(axes: Any, points: list[tuple[int, float | None]], name: str) -> None:
    known = [(step, value) for step, value in points if value is not None]
    xs, ys = [step for step, _ in known], [value for _, value in known]
    smooth = [statistics.fmean(ys[max(0, i - 4) : i + 1]) for i in range(len(ys))]
    axes.plot(xs, ys, "o", color="#9ecae1", markersize=4, label=f"{name} of a step")
    axes.plot(xs, smooth, color="#08519c", linewidth=2, label="mean of the last 5 steps")
