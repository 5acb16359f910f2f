"""Shows how far a collection is: a live bar on a terminal, a line now and then elsewhere."""

import time
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from rlbridge.rollouts.outcome import Outcome
from rlbridge.rollouts.tally import Tally
from rlbridge.rollouts.tasks import Task

_LINE_EVERY_S: Final = 10.0


class Screen:
    """A context manager that draws while it is open.

    Args:
        title: what is done, in a few words.
        tally: what to show.
        console: where to draw.
    """

    def __init__(self, title: str, tally: Tally, console: Console) -> None:
        self._title = title
        self._tally = tally
        self._console = console
        self._next_line_s = 0.0
        self._live = Live(
            console=console, refresh_per_second=4, transient=True, get_renderable=self._view
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        self._print(f"{self._title}: {words(self._tally)}")

    def kept(self, _task: Task, _outcome: Outcome) -> None:
        """A rollout was kept and counted."""
        if not self._console.is_terminal and time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            self._print(f"{self._title}: {words(self._tally)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _view(self) -> Group:
        tally = self._tally
        settled = tally.done + tally.failed
        bar = ProgressBar(total=max(tally.total, 1), completed=settled, width=40)
        return Group(Text(self._title, style="bold"), bar, Text(words(tally)))


def words(tally: Tally) -> str:
    """A tally in one line."""
    parts = [f"{tally.done:,} of {tally.total:,} done"]
    if tally.before:
        parts.append(f"{tally.before:,} of them before")
    if tally.failed:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in tally.failures.most_common(4))
        parts.append(f"{tally.failed:,} failed ({kinds})")
    if tally.retries:
        parts.append(f"{tally.retries:,} tried again")
    if tally.reward_mean is not None:
        parts.append(f"reward {tally.reward_mean:.3f}")
    if tally.tokens:
        parts.append(f"{tally.tokens_per_s:,.0f} tokens/s")
    eta_s = tally.eta_s
    if eta_s:
        parts.append(f"{duration(eta_s)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them: `48 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
