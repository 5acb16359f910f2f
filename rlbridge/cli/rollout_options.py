"""Options that commands on rows and rollouts share, and the bar that shows progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rlbridge.errors import ConfigError

Inputs = Annotated[
    list[Path],
    typer.Argument(
        help="Rollout files: .jsonl, .jsonl.gz, .jsonl.zst or .parquet.", metavar="ROLLOUTS..."
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="The training file: .jsonl, .jsonl.gz, .jsonl.zst, .parquet."
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="Prompt config for rows of raw fields: a YAML file, or a built-in such as "
        "generic/math. As `data.prompt` of a training run."
    ),
]
Threshold = Annotated[
    float | None, typer.Option("--reward-threshold", help="Leave rewards below it out.")
]
Ceiling = Annotated[float | None, typer.Option(help="Leave rewards above it out.")]
MaxPerPrompt = Annotated[int, typer.Option(help="Rows of one prompt at most; 0 keeps all.")]


class Keep(StrEnum):
    """Which of a prompt's rows are kept."""

    RANDOM = "random"
    BEST = "best"


KeepOption = Annotated[
    Keep,
    typer.Option(
        help="Which rows of a prompt --max-per-prompt keeps, never the first ones: "
        "collectors write short ones first."
    ),
]
Dedupe = Annotated[
    bool, typer.Option(help="Drop rows that say what an earlier row of the prompt said.")
]
Validation = Annotated[
    str,
    typer.Option(
        help="Share of the prompts for OUTPUT.validation: 5%, or 0.05. No prompt is in both."
    ),
]
Seed = Annotated[int, typer.Option(help="Of every random choice: the same seed, the same files.")]
MaxBad = Annotated[str, typer.Option(help="Share of lines that may be bad before it is an error.")]


class Reasoning(StrEnum):
    """Where reasoning goes."""

    FIELD = "field"
    THINK = "think"
    DROP = "drop"


ReasoningOption = Annotated[
    Reasoning | None,
    typer.Option(
        help="Reasoning as a field of the message, between <think> tags in its text, or "
        "dropped. By default what --model's template reads; else a field, and tags where "
        "the format has text only."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="The model to be trained: its chat template says how reasoning and tool "
        "calls look, and the configs name it."
    ),
]
Configs = Annotated[
    bool, typer.Option("--configs/--no-configs", help="Write ready configs beside the data.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that convert plain .jsonl; the files are the same for any number. By "
        "default one a CPU, at most 4, if the input is above 256 MB.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class GrpoFormat(StrEnum):
    """The forms of GRPO data."""

    SIMPLE = "simple"
    GYM = "gym"
    VERL = "verl"


class SftFormat(StrEnum):
    """The forms of SFT data."""

    OPENAI = "openai"
    SIMPLE = "simple"


class DpoFormat(StrEnum):
    """The forms of DPO data."""

    SIMPLE = "simple"
    OPENAI = "openai"
    PREFERENCE = "preference"


class Strategy(StrEnum):
    """How rollouts are paired."""

    SAME_PROMPT = "same_prompt"
    STRATIFIED = "stratified"


def check_inputs(paths: list[Path]) -> None:
    """Refuse files that aren't there, before anything is written.

    Raises:
        ConfigError: one is missing.
    """
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"no file {path}")


def share(text: str, option: str) -> float:
    """A share such as `5%` or `0.05`.

    Raises:
        ConfigError: it is neither.
    """
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{option} must be a share such as 5% or 0.05, got {text!r}")
    return value


@contextmanager
def progress_bar(total: int, what: str, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar over bytes on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(what, total=total)
        yield lambda size: progress.advance(task, size)
