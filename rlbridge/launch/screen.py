"""Shows a run to people: a live table on a terminal, a line a step elsewhere."""

from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlbridge.launch.progress import Progress, StepRow

SHOWN_STEPS = 12
PHASES = {
    "started": "importing the framework",
    "imported": "starting Ray",
    "ray_ready": "loading the policy into trainer and engine",
    "workers_ready": "connecting rollouts",
    "training": "training",
    "ending": "shutting down",
}


class Screen:
    """A context manager that draws the run while it is open.

    Args:
        title: what the run is, in a few words.
        total_steps: steps the run is meant to take.
        console: where to draw.
        rewarded: whether the run learns from rewards; if not, its loss is shown.
    """

    def __init__(
        self, title: str, total_steps: int, console: Console, *, rewarded: bool = True
    ) -> None:
        self._title = title
        self._line, self._table = (
            (_line, self._reward_table) if rewarded else (_loss_line, self._loss_table)
        )
        self._total = total_steps
        self._console = console
        self._rows: deque[StepRow] = deque(maxlen=SHOWN_STEPS)
        self._notes: deque[str] = deque(maxlen=4)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._phase = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.update(self._table())
            self._live.stop()
            self._console.print(self._table())

    def note(self, text: str) -> None:
        """Show a remark (a masked row, say) and keep the last few in view."""
        self._notes.append(text)
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, fresh: list[StepRow], progress: Progress, elapsed_s: float) -> None:
        """Redraw after a poll."""
        self._rows.extend(fresh)
        if self._console.is_terminal:
            self._live.update(self._view(progress, elapsed_s))
            return
        phase = _phase(progress)
        if phase != self._phase:
            self._phase = phase
            self._console.print(
                f"[{elapsed_s:6.1f} s] {phase}", markup=False, highlight=False, soft_wrap=True
            )
        for row in fresh:
            self._console.print(
                self._line(row, self._total), markup=False, highlight=False, soft_wrap=True
            )

    def _view(self, progress: Progress, elapsed_s: float) -> Group:
        done = len(progress.steps)
        head = Text(f"{self._title}  {elapsed_s:.0f} s  ", style="bold")
        head.append(_phase(progress), style="cyan")
        paces = [row.metrics.step_s for row in self._rows if row.metrics.step_s is not None]
        if paces:
            rest = self._total - done
            pace = sum(paces) / len(paces)
            head.append(f"  about {rest * pace / 60:.1f} min left", style="dim")
        bar = Table.grid()  # a bar alone doesn't end its line
        bar.add_row(ProgressBar(total=self._total, completed=done, width=60))
        notes = [Text(note, style="yellow") for note in self._notes]
        return Group(head, bar, self._table(), *notes)

    def _reward_table(self) -> Table:
        table = _columns(
            "step", "reward", "", "valid", "invalid", "tokens", "tokens/s", "s/step"
        )  # fmt: skip
        for row in self._rows:
            metrics = row.metrics
            table.add_row(
                f"{metrics.step}/{self._total}",
                _number(metrics.reward_mean, 3),
                Text("█" * round(20 * min(1.0, max(0.0, metrics.reward_mean or 0.0))), "green"),
                str(row.valid),
                Text(str(row.invalid), "red" if row.invalid else "dim"),
                _number(metrics.response_tokens_mean, 1),
                _number(metrics.tokens_per_s, 0),
                _number(metrics.step_s, 1),
            )
        return table

    def _loss_table(self) -> Table:
        table = _columns("step", "loss", "val loss", "margin", "tokens/s", "s/step")
        for row in self._rows:
            metrics = row.metrics
            table.add_row(
                f"{metrics.step}/{self._total}",
                _number(metrics.loss, 4),
                _number(metrics.val_loss, 4),
                _number(metrics.margin, 3),
                _number(metrics.tokens_per_s, 0),
                _number(metrics.step_s, 1),
            )
        return table


def _columns(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name == "" else "right")
    return table


def _phase(progress: Progress) -> str:
    names = [name for name in progress.phases.after_s if name in PHASES]
    return PHASES[names[-1]] if names else "starting"


def _line(row: StepRow, total: int) -> str:
    metrics = row.metrics
    return (
        f"step {metrics.step:>4}/{total}  reward {_number(metrics.reward_mean, 3)}  "
        f"valid {row.valid}  invalid {row.invalid}  "
        f"tokens {_number(metrics.response_tokens_mean, 1)}  "
        f"tokens/s {_number(metrics.tokens_per_s, 0)}  {_number(metrics.step_s, 1)} s"
    )


def _loss_line(row: StepRow, total: int) -> str:
    metrics = row.metrics
    figures = (("loss", metrics.loss, 4), ("val loss", metrics.val_loss, 4),
               ("margin", metrics.margin, 3))  # fmt: skip
    known = "".join(f"{name} {_number(n, d)}  " for name, n, d in figures if n is not None)
    return (
        f"step {metrics.step:>4}/{total}  {known}"
        f"tokens/s {_number(metrics.tokens_per_s, 0)}  {_number(metrics.step_s, 1)} s"
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
