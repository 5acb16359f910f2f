"""Everything a plugin may add, on one screen.

A plugin is a module (or object) named in the entry-point group `rlbridge` that implements one or
more of these hooks with `rlbridge.hookspecs.hookimpl`. It must import without its framework:
put heavy imports inside `Framework.load`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pluggy

from rlbridge.evaluators.evaluator import EvaluatorSpec
from rlbridge.run_config import RunConfig

PROJECT = "rlbridge"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One training step in rlbridge's words; None where the framework doesn't say.

    Lengths are in tokens, times in seconds, `reward_mean` is over valid rewards only. `margin` is
    of preference pairs: by how many nats more than the first policy this one prefers what was
    chosen, on average.
    """

    step: int
    reward_mean: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    margin: float | None = None
    response_tokens_mean: float | None = None
    tokens_per_s: float | None = None
    step_s: float | None = None
    rollout_probs_diff_max: float | None = None
    native: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NativeRun:
    """A run compiled into a framework's own terms.

    Attributes:
        config: the native config as plain data, for people to read.
        argv: the process that trains; it ends when training does.
        env: what to add to its environment.
        by_hand: the shell command that runs the same without rlbridge's launcher.
        metrics_path: JSON lines the framework appends to, one a step.
        read_metrics: turns one such line into a step, or None if it is no step.
        secrets: files that hold what must not stand in a command line, such as keys; written with
            mode 0600 before the start.
        components: names that appear in the titles of processes that must live as long as the run.
    """

    config: Mapping[str, Any]
    argv: list[str]
    env: Mapping[str, str]
    by_hand: str
    metrics_path: Path
    read_metrics: Callable[[Mapping[str, Any]], StepMetrics | None]
    secrets: Mapping[Path, bytes] = field(default_factory=dict)
    components: tuple[str, ...] = ()


class Backend(Protocol):
    """What a framework's plugin can do once the framework is installed."""

    def compile(self, config: RunConfig, run_dir: Path) -> NativeRun:
        """Compile `config` into a native run that leaves its files under `run_dir`."""


@dataclass(frozen=True, slots=True)
class Export:
    """How a checkpoint becomes a model in Hugging Face's format.

    Attributes:
        command: of the framework's converter.
        beside: files that it doesn't write, to be copied into the model's folder.
    """

    command: list[str]
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Framework:
    """An RL framework that a plugin connects.

    Attributes:
        name: what users write after `--framework`.
        summary: one line for `rlbridge plugins`.
        requires: import names that must be found for `load` to work.
        install: the command that installs what `requires` names.
        load: imports the framework's side and returns its backend.
        exporter: from a checkpoint and a folder to make to what writes the policy there in
            Hugging Face's format; None if the framework has no converter.
        supported: the versions that the plugin was run with, for people.
        version: says which version is installed; None asks the distribution of `requires[0]`.
        algorithms: values of `algorithm.name` that it launches.
        prompts: whether it makes the prompts of rows of raw fields (`data.prompt`).
    """

    name: str
    summary: str
    requires: tuple[str, ...]
    install: str
    load: Callable[[], Backend]
    exporter: Callable[[Path, Path], Export] | None = None
    supported: str = ""
    version: Callable[[], str | None] | None = None
    algorithms: tuple[str, ...] = ()
    prompts: bool = False


class Hooks:
    """The hook contract."""

    @hookspec
    def rlbridge_frameworks(self) -> list[Framework]:  # type: ignore[empty-body]
        """Frameworks this plugin connects."""

    @hookspec
    def rlbridge_evaluators(self) -> list[EvaluatorSpec]:  # type: ignore[empty-body]
        """Evaluators this plugin adds."""
