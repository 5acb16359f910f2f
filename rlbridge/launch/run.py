"""One training run, from checks to summary. Whatever happens, nothing it started stays behind."""

import os
import re
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil
import yaml
from rich.console import Console

from rlbridge.errors import GymError, RunError
from rlbridge.hookspecs import Backend, NativeRun
from rlbridge.launch import preflight, processes
from rlbridge.launch.progress import Progress
from rlbridge.launch.screen import Screen
from rlbridge.launch.summary import draw_losses, draw_rewards, summarize, write_summary
from rlbridge.run_config import GymSection, RunConfig

POLL_S = 0.5
WATCH_EVERY_S = 5.0  # adding up memory walks every process
GYM_START_TIMEOUT_S = 60.0
STOPPED_ON_PURPOSE = 3
_CHECKPOINT = re.compile(r"(?:global_)?step_(\d+)")
# What a run writes; an earlier run's are moved aside, its checkpoints too unless resumed.
RUN_FILES = (
    "events.jsonl", "metrics.jsonl", "verl_metrics.jsonl",
    "nemo_rl_metrics.jsonl", "nemo_rl_logs", "rewards", "train.log", "gym", "gym.log",
    "summary.json", "reward.png", "loss.png", "native.yaml",
)  # fmt: skip


class Run:
    """A run about to be made.

    Args:
        config: the whole config.
        framework: the framework's name, for titles.
        backend: compiles the config for it.
        console: where to show progress.
    """

    def __init__(
        self, config: RunConfig, framework: str, backend: Backend, console: Console
    ) -> None:
        self._config = config
        self._framework = framework
        self._backend = backend
        self._console = console
        self._dir = config.trainer.output_dir
        self._rewarded = config.algorithm.name == "grpo"

    def execute(self) -> dict[str, Any]:
        """Check, start, watch to the end, and sum up.

        Returns:
            The summary, as written to `summary.json`.

        Raises:
            ConfigError: a check before the start failed.
            GymError: the Gym can't be reached or started.
            RunError: the run stopped before its end; the message says why and what is kept.
            KeyboardInterrupt: the user stopped it.
        """
        preflight.check_policy(self._config.policy.path)
        rows = preflight.check_rows(self._config) if self._rewarded else []
        native = self._backend.compile(self._config, self._dir)  # refuses, with nothing started yet
        processes.adopt_orphans()
        processes.stop_signal_raises()
        with processes.nothing_left_behind():
            if not self._rewarded:
                self._make_room()
            elif (config := self._with_gym(rows)) is not self._config:
                native = self._backend.compile(config, self._dir)  # with the Gym's URL
            return self._train(native)

    def _with_gym(self, rows: list[dict[str, Any]]) -> RunConfig:
        """See that the Gym works, or start an embedded one; return the config with its URL."""
        gym = self._config.gym
        if gym.serve is None:
            self._check_gym(gym, rows)
            self._make_room()
            return self._config
        self._make_room()
        url = start_gym(gym.serve, self._dir)
        self._console.print(f"serving {gym.serve} at {url}", markup=False)
        gym = gym.model_copy(update={"url": url, "serve": None})
        self._check_gym(gym, rows)
        return self._config.model_copy(update={"gym": gym})

    def _check_gym(self, gym: GymSection, rows: list[dict[str, Any]]) -> None:
        if self._config.agent.loop == "run":
            preflight.check_agents(gym, self._config.agent)
            return
        for warning in preflight.check_gym(gym, rows):
            self._console.print(f"{warning}; its samples are masked", markup=False)

    def _make_room(self) -> None:
        """Only once nothing but the start itself can fail: an earlier run stays where it is."""
        self._dir.mkdir(parents=True, exist_ok=True)
        move_aside(self._dir, keep_checkpoints=self._config.trainer.resume)

    def _train(self, native: NativeRun) -> dict[str, Any]:
        started = time.monotonic()
        for path, content in native.secrets.items():
            write_secret(path, content)
        (self._dir / "native.yaml").write_text(yaml.safe_dump(dict(native.config), sort_keys=False))
        driver = processes.start(native.argv, log=self._dir / "train.log", env=native.env)
        watch = processes.ComponentWatch(driver.pid, native.components)
        progress = Progress(self._dir, native)
        total = self._config.trainer.steps
        title = f"rlbridge {self._framework} {self._config.algorithm.name}"
        try:
            with Screen(title, total, self._console, rewarded=self._rewarded) as screen:
                last_watch = 0.0
                while driver.poll() is None:
                    time.sleep(POLL_S)
                    elapsed = time.monotonic() - started
                    gone: list[str] = []
                    if elapsed - last_watch > WATCH_EVERY_S:
                        last_watch = elapsed
                        gone = watch.poll()
                    # Read after looking at processes: a driver says that it ends before they do.
                    screen.show(progress.poll(), progress, elapsed)
                    _note(screen, progress)
                    self._check(gone, progress, elapsed)
                screen.show(progress.poll(), progress, time.monotonic() - started)
        finally:
            summary = self._sum_up(progress, watch)
        self._judge(driver.returncode, progress)
        return summary

    def _check(self, gone: list[str], progress: Progress, elapsed: float) -> None:
        if gone and not progress.phases.ending:
            raise RunError(
                f"a part of the run died: {gone[0][:120]}; everything else was stopped "
                f"(see {self._dir / 'train.log'}); {self._kept(progress)}"
            )
        if not progress.steps and elapsed > self._config.trainer.start_timeout_s:
            raise RunError(
                f"no step ended within trainer.start_timeout_s="
                f"{self._config.trainer.start_timeout_s:.0f}; see {self._dir / 'train.log'}"
            )

    def _judge(self, status: int, progress: Progress) -> None:
        if status == STOPPED_ON_PURPOSE:
            raise RunError(f"{progress.phases.stopped}; {self._kept(progress)}")
        if status != 0:
            tail = _tail(self._dir / "train.log")
            raise RunError(
                f"{self._framework} ended with status {status} after {len(progress.steps)} steps; "
                f"the end of {self._dir / 'train.log'}:\n{tail}\n{self._kept(progress)}"
            )

    def _kept(self, progress: Progress) -> str:
        folder = self._dir / "checkpoints"
        # What is being written is called otherwise: tmp_step_3.
        names = [_CHECKPOINT.fullmatch(path.name) for path in folder.glob("*step_*")]
        saved = [int(name[1]) for name in names if name]
        if not saved:
            return "no checkpoint was saved yet"
        step = progress.phases.checkpoint_step
        newest = step if step is not None else max(saved)
        return f"kept the checkpoint of step {newest} in {folder}; go on with --resume"

    def _sum_up(self, progress: Progress, watch: processes.ComponentWatch) -> dict[str, Any]:
        summary = summarize(progress, watch.peak_mb)
        write_summary(self._dir / "summary.json", summary)
        draw, picture = (draw_losses, "loss.png")
        title = f"{self._framework} {self._config.algorithm.name}"
        if self._rewarded:
            draw, picture = (draw_rewards, "reward.png")
            title += ", rewards from a Gym server"
        if progress.steps and not draw(self._dir / picture, progress.steps, title):
            self._console.print(f"no {picture}: pip install 'rlbridge[plot]'", markup=False)
        return summary


def start_gym(name: str, run_dir: Path) -> str:
    """Start an embedded Gym server on a free loopback port and wait until it accepts.

    Returns:
        Its base URL.

    Raises:
        GymError: it ended or said nothing in time; the message holds the end of its log.
    """
    ready, log = run_dir / "gym.ready", run_dir / "gym.log"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "rlbridge", "gym", "serve", name, "--port", "0"]
    argv += ["--ready-file", str(ready), "--exit-with-parent"]
    server = processes.start(argv, log=log, env={})
    deadline = time.monotonic() + GYM_START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        if ready.exists():
            url = str(orjson.loads(ready.read_bytes())["url"])
            ready.unlink()
            return url
        time.sleep(0.05)
    processes.end([psutil.Process(server.pid)] if server.poll() is None else [])
    raise GymError(
        f"the embedded Gym {name!r} did not come up within {GYM_START_TIMEOUT_S:.0f} s; "
        f"the end of {log}:\n{_tail(log)}"
    )


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only this user can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def move_aside(run_dir: Path, *, keep_checkpoints: bool) -> None:
    """Move an earlier run's files to `earlier/<time>/`; nothing is deleted."""
    names = RUN_FILES if keep_checkpoints else (*RUN_FILES, "checkpoints")
    found = [run_dir / name for name in names if (run_dir / name).exists()]
    if not found:
        return
    target = run_dir / "earlier" / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    target.mkdir(parents=True)
    for path in found:
        shutil.move(path, target / path.name)


def _note(screen: Screen, progress: Progress) -> None:
    for warning in progress.warnings:
        screen.note(warning)
    for outcome in progress.invalid[:3]:
        screen.note(
            f"row {outcome['row']}: masked, no reward ({outcome['failure']}, "
            f"{outcome['attempts']} attempts): {outcome['detail'][:160]}"
        )
    if len(progress.invalid) > 3:
        screen.note(f"... and {len(progress.invalid) - 3} more; see rewards/")


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
