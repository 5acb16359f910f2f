"""A whole re-scoring, as a user starts one: resumes, judges what is missing, shows what changed."""

from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlbridge.config import GymConfig
from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.gym import GymClient
from rlbridge.plugins import Plugins
from rlbridge.rollouts.collect import Collection, Pace
from rlbridge.rollouts.index import Done, Key, key_of
from rlbridge.rollouts.outcome import Outcome
from rlbridge.rollouts.rescore import Rescorer, refuse_stateful
from rlbridge.rollouts.screen import Screen
from rlbridge.rollouts.store import Store, failures_path
from rlbridge.rollouts.tally import Tally
from rlbridge.rollouts.tasks import JudgedRows, Task, file_sha256
from rlbridge.transforms.reading import Line


@dataclass(frozen=True, slots=True)
class Judge:
    """Who judges.

    Attributes:
        gym: base URL of a resources server; None where an evaluator judges.
        evaluator: its name.
        options: the evaluator's.
        replay: make tool calls again in a session first.
        force: ask a server that says it can't judge again.
    """

    gym: str | None = None
    evaluator: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    replay: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if (self.gym is None) == (self.evaluator is None):
            raise ConfigError("who judges? Give --gym URL or --evaluator NAME, one of them")
        if self.replay and self.gym is None:
            raise ConfigError("--replay makes tool calls again, and those are a --gym's")

    def asked(self) -> dict[str, Any]:
        """What decides which verdicts come out, for the run's record."""
        return {
            "gym": self.gym,
            "evaluator": self.evaluator,
            "evaluator_options": dict(self.options),
            "replay": self.replay,
        }


class RescoreRun:
    """`rlbridge rollouts rescore`.

    Args:
        judge: who judges.
        pace: how hard to try.
        source: the rollouts.
        output: where the rows with new verdicts go.
        console: where to show how far it is.
        retry_failed: judge again what earlier runs gave up on.
        ordered: sort the rows at the end.
        accept_changes: go on although other options were asked before.
    """

    def __init__(
        self,
        judge: Judge,
        pace: Pace,
        source: Path,
        output: Path,
        console: Console,
        *,
        retry_failed: bool = False,
        ordered: bool = False,
        accept_changes: bool = False,
    ) -> None:
        self._judge = judge
        self._pace = pace
        self._source = source
        self._output = output
        self._console = console
        self._retry_failed = retry_failed
        self._ordered = ordered
        self._accept_changes = accept_changes

    async def execute(self) -> dict[str, Any]:
        """Judge what is missing.

        Returns:
            The run's figures, and `verdicts`: how many rows changed how, in this run.

        Raises:
            ConfigError: the input, the output or an option is wrong.
            GymError: the environment doesn't answer at all.
            RunError: the disk is full, or everything fails.
        """
        if self._output.resolve() == self._source.resolve():
            raise ConfigError("--output must be another file than the rollouts that are judged")
        total = _survey(self._source)
        asked = {
            "command": "rescore",
            "input_sha256": file_sha256(self._source),
            **self._judge.asked(),
        }
        async with Store(self._output, asked, accept_changes=self._accept_changes) as store:
            tally = Tally(total, len(store.done))
            given_up = frozenset() if self._retry_failed else frozenset(store.failed)
            wanted = partial(_wanted, store.done, given_up)
            verdicts: dict[str, int] = {}
            with closing(_tasks(self._source, wanted)) as tasks:
                first = next(tasks, None)
                if first is not None:
                    verdicts = await self._rescore(store, tally, chain([first], tasks))
            await store.finish(ordered=self._ordered)
            self._tell(store, verdicts)
            figures = tally.summary() | {"failures_left": len(store.failed)}
            return figures | {"verdicts": verdicts}

    async def _rescore(self, store: Store, tally: Tally, tasks: Any) -> dict[str, int]:
        async with self._opened() as rescorer:
            with Screen(f"judging by {rescorer.words}", tally, self._console) as screen:

                def kept(task: Task, outcome: Outcome) -> None:
                    rescorer.count(task.row, outcome)
                    screen.kept(task, outcome)

                await Collection(rescorer, store, tally, self._pace, kept).run(tasks)
        return {
            f"{before} → {after}": count
            for (before, after), count in sorted(rescorer.verdicts.items())
        }

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Rescorer]:
        judge = self._judge
        async with AsyncExitStack() as stack:
            if judge.gym is None:
                name = judge.evaluator or ""
                evaluator = Plugins().evaluator(name, judge.options)
                stack.push_async_callback(evaluator.aclose)
                yield Rescorer(evaluator, name)
                return
            config = GymConfig(url=judge.gym, max_concurrency=self._pace.concurrency)
            gym = await stack.enter_async_context(GymClient(config))
            await gym.check_alive()
            mode = await refuse_stateful(gym, force=judge.force or judge.replay)
            words = judge.gym if mode == "unknown" else f"{judge.gym} ({mode})"
            yield Rescorer(gym, words, replay=judge.replay)

    def _tell(self, store: Store, verdicts: Mapping[str, int]) -> None:
        """What changed, and where the rows are."""
        if verdicts:
            table = Table("before → now", "rows", title="verdicts of this run")
            for name, count in verdicts.items():
                table.add_row(name, f"{count:,}")
            self._console.print(table)
        say = partial(self._console.print, markup=False, highlight=False, soft_wrap=True)
        say(f"{len(store.done):,} rows in {self._output}")
        if store.failed:
            where = failures_path(self._output)
            say(f"{len(store.failed):,} without a verdict, with their reasons in {where}")


def _wanted(done: Done, given_up: frozenset[Key], key: Key) -> bool:
    return key not in done and key not in given_up


def _survey(path: Path) -> int:
    """How many rows there are; refuses two of one rollout, which could not be told apart."""
    seen, rows = Done(), 0
    for number, line in enumerate(JudgedRows([path])):
        key = _key(line, number)
        if not seen.add(key):
            raise ConfigError(
                f"{line.where}: a second row of task {key.task}, rollout {key.rollout}; files "
                "that were put together must be judged one by one"
            )
        rows += 1
    if not rows:
        raise ConfigError(f"{path} holds no rows")
    return rows


def _tasks(path: Path, wanted: Callable[[Key], bool]) -> Generator[Task, None, None]:
    with closing(line for line in JudgedRows([path])) as lines:
        for number, line in enumerate(lines):
            key = _key(line, number)
            if wanted(key):
                yield Task(key, line.row)


def _key(line: Line, number: int) -> Key:
    """The row's own indices; where it has none, its place in the file."""
    if wire.TASK_INDEX not in line.row or wire.ROLLOUT_INDEX not in line.row:
        return Key(number, 0)
    try:
        return key_of(line.row)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{line.where}: the rollout's indices are no numbers") from error
