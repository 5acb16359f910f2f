"""A whole collection, as a user starts one: checks, resumes, plays, and says how it went."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from rlbridge.prompts import PromptConfig
from rlbridge.rollouts.cluster import open_cluster_player
from rlbridge.rollouts.collect import Collection, Pace
from rlbridge.rollouts.config import PlayConfig
from rlbridge.rollouts.index import Key
from rlbridge.rollouts.opening import open_player
from rlbridge.rollouts.player import Player
from rlbridge.rollouts.policy import LoadTokenizer
from rlbridge.rollouts.screen import Screen
from rlbridge.rollouts.store import Store, failures_path
from rlbridge.rollouts.tally import Tally
from rlbridge.rollouts.tasks import Input, Task


class CollectRun:
    """`rlbridge rollouts collect`.

    Args:
        play: who plays.
        load_tokenizer: from a folder or a hub name.
        pace: how hard to try.
        source: the input rows.
        output: where rows go.
        console: where to show how far it is.
        repeats: rollouts of each row.
        limit: rows used, from the top; None for all.
        prompt: makes the rows' prompts; None if they have them.
        retry_failed: play again what earlier runs gave up on.
        ordered: sort the rows at the end.
        accept_changes: go on although other options were asked before.
        ray: address of a Ray cluster to spread the work over; None plays here.
        ray_workers: worker processes there.
    """

    def __init__(
        self,
        play: PlayConfig,
        load_tokenizer: LoadTokenizer,
        pace: Pace,
        source: Path,
        output: Path,
        console: Console,
        *,
        repeats: int = 1,
        limit: int | None = None,
        prompt: PromptConfig | None = None,
        retry_failed: bool = False,
        ordered: bool = False,
        accept_changes: bool = False,
        ray: str | None = None,
        ray_workers: int = 4,
    ) -> None:
        self._play = play
        self._load_tokenizer = load_tokenizer
        self._pace = pace
        self._source = source
        self._output = output
        self._console = console
        self._repeats = repeats
        self._limit = limit
        self._prompt = prompt
        self._retry_failed = retry_failed
        self._ordered = ordered
        self._accept_changes = accept_changes
        self._ray = ray
        self._ray_workers = ray_workers

    async def execute(self) -> dict[str, Any]:
        """Collect what is missing.

        Returns:
            The run's figures.

        Raises:
            ConfigError: the input, the output or an option is wrong.
            GymError: the environment doesn't answer at all.
            EngineError: the policy doesn't.
            RunError: the disk is full, or everything fails.
        """
        source = Input.survey(self._source, self._limit, self._prompt)
        asked = {
            "command": "collect",
            "input_sha256": source.sha256,
            "rows": source.rows,
            "repeats": self._repeats,
            **({"prompt": self._prompt.digest} if self._prompt else {}),
            **self._play.asked(),
        }
        async with Store(self._output, asked, accept_changes=self._accept_changes) as store:
            tally = Tally(source.rows * self._repeats, len(store.done))
            skipped = 0 if self._retry_failed else len(store.failed)
            with closing(source.tasks(self._repeats, self._wanted(store))) as tasks:
                first = next(tasks, None)
                if first is not None:
                    await self._collect(store, tally, chain([first], tasks))
            await store.finish(ordered=self._ordered)
            self._tell(store, skipped)
            return tally.summary() | {"failures_left": len(store.failed)}

    def _wanted(self, store: Store) -> Callable[[Key], bool]:
        given_up = frozenset() if self._retry_failed else frozenset(store.failed)
        return lambda key: key not in store.done and key not in given_up

    async def _collect(self, store: Store, tally: Tally, tasks: Iterator[Task]) -> None:
        say = partial(self._console.print, markup=False, highlight=False, soft_wrap=True)
        if store.resumed:
            say(f"going on with {self._output}")
        async with self._player() as player:
            say(f"{self._output.name}: {tally.total:,} rollouts, played by {player.words}")
            with Screen("collecting", tally, self._console) as screen:
                await Collection(player, store, tally, self._pace, screen.kept).run(tasks)

    def _player(self) -> AbstractAsyncContextManager[Player]:
        pace = self._pace
        if self._ray is not None:
            return open_cluster_player(
                self._play,
                self._load_tokenizer,
                address=self._ray,
                workers=self._ray_workers,
                concurrency=pace.concurrency,
                timeout_s=pace.timeout_s,
            )
        return open_player(
            self._play,
            self._load_tokenizer,
            concurrency=pace.concurrency,
            timeout_s=pace.timeout_s,
        )

    def _tell(self, store: Store, skipped: int) -> None:
        """The last lines: where the rows are, and what can be done about those that failed."""
        say = partial(self._console.print, markup=False, highlight=False, soft_wrap=True)
        say(f"{len(store.done):,} rows in {self._output}")
        if skipped:
            say(f"{skipped:,} that failed earlier were left alone; --retry-failed plays them")
        if store.failed:
            where = failures_path(self._output)
            say(f"{len(store.failed):,} without a row, with their reasons in {where}")
