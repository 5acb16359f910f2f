"""`rlbridge transform ...`: rollouts into GRPO, SFT and DPO data that trainers load as it is."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlbridge.cli.rollout_options import (
    AsJson,
    Ceiling,
    Configs,
    Dedupe,
    DpoFormat,
    GrpoFormat,
    Inputs,
    Keep,
    KeepOption,
    MaxBad,
    MaxPerPrompt,
    Model,
    Output,
    ReasoningOption,
    Seed,
    SftFormat,
    Strategy,
    Threshold,
    Validation,
    Workers,
    check_inputs,
    progress_bar,
    share,
)
from rlbridge.cli.tokenizers import style_for
from rlbridge.cli.transform_check import check
from rlbridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlbridge.transforms.pipeline import Job, Report
    from rlbridge.transforms.selection import Selection

app = typer.Typer(
    help="Rollouts into GRPO, SFT and DPO data that NeMo-RL, verl and TRL load as it is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def grpo(
    inputs: Inputs,
    output: Output,
    format: Annotated[  # noqa: A002 # the option's name
        GrpoFormat,
        typer.Option(
            help="simple: input, output, ground_truth. gym: rows as a Gym agent takes "
            "them. verl: verl's columns, and the Gym row."
        ),
    ] = GrpoFormat.SIMPLE,
    ground_truth: Annotated[
        str | None,
        typer.Option(
            help="The field with the right answer, such as a.b; by default the usual names."
        ),
    ] = None,
    reward_threshold: Threshold = None,
    max_reward: Ceiling = None,
    max_per_prompt: MaxPerPrompt = 1,
    keep: KeepOption = Keep.RANDOM,
    dedupe: Dedupe = True,
    validation: Validation = "0%",
    seed: Seed = 0,
    max_bad: MaxBad = "1%",
    model: Model = None,
    configs: Configs = True,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Prompts and what verifies them, for GRPO.

    \b
    rlbridge transform grpo rollouts.jsonl -o train.jsonl --validation 5%
    rlbridge transform grpo rollouts*.jsonl.zst -o train.jsonl --format gym
    rlbridge transform grpo rollouts.jsonl -o train.parquet --format verl
    """  # noqa: D301 # click reads the backspace: keep these lines
    from rlbridge.transforms import grpo as transform_grpo
    from rlbridge.transforms.pipeline import transform

    selection = _selection(
        reward_threshold, max_reward, max_per_prompt, keep, dedupe, validation, seed
    )
    with _work(inputs, output, max_bad, workers, as_json) as more:
        style = style_for(model, None)
        job = transform_grpo.job(
            tuple(inputs), output, selection,
            format=format.value, ground_truth=ground_truth, style=style, **more,
        )  # fmt: skip
        report = transform(job)
    _finish(job, report, model, configs, as_json)


@app.command()
def sft(
    inputs: Inputs,
    output: Output,
    format: Annotated[  # noqa: A002 # the option's name
        SftFormat,
        typer.Option(
            help="openai: messages and tools. simple: input, output; single answers only."
        ),
    ] = SftFormat.OPENAI,
    reward_threshold: Threshold = 0.95,
    max_reward: Ceiling = None,
    max_per_prompt: MaxPerPrompt = 0,
    keep: KeepOption = Keep.RANDOM,
    dedupe: Dedupe = True,
    validation: Validation = "0%",
    seed: Seed = 0,
    max_bad: MaxBad = "1%",
    reasoning: ReasoningOption = None,
    model: Model = None,
    configs: Configs = True,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Good conversations, for supervised fine-tuning.

    \b
    rlbridge transform sft rollouts.jsonl -o sft.jsonl --reward-threshold 0.95
    rlbridge transform sft rollouts.jsonl -o sft.jsonl --max-per-prompt 2 --keep best
    rlbridge transform sft rollouts.jsonl -o sft.jsonl --model Qwen/Qwen3-8B
    """  # noqa: D301 # click reads the backspace: keep these lines
    from rlbridge.transforms import sft as transform_sft
    from rlbridge.transforms.pipeline import transform

    selection = _selection(
        reward_threshold, max_reward, max_per_prompt, keep, dedupe, validation, seed
    )
    with _work(inputs, output, max_bad, workers, as_json) as more:
        style = style_for(model, reasoning)
        job = transform_sft.job(
            tuple(inputs), output, selection, format=format.value, style=style, **more
        )
        report = transform(job)
    _finish(job, report, model, configs, as_json)


@app.command()
def dpo(
    inputs: Inputs,
    output: Output,
    format: Annotated[  # noqa: A002 # the option's name
        DpoFormat,
        typer.Option(
            help="simple: text answers. openai: message lists, tools too (TRL). "
            "preference: NeMo-RL's context and completions, tool calls too."
        ),
    ] = DpoFormat.SIMPLE,
    strategy: Annotated[
        Strategy,
        typer.Option(
            help="same_prompt: any two rollouts of a prompt. stratified: one above "
            "--high-threshold with one below --low-threshold, of the same prompt too."
        ),
    ] = Strategy.SAME_PROMPT,
    pairs: Annotated[
        str,
        typer.Option(help="best: best against worst. all: every pair above the gap. Or a number."),
    ] = "best",
    min_gap: Annotated[float, typer.Option(help="Smallest difference of rewards.")] = 0.2,
    high_threshold: Annotated[float, typer.Option(help="Of stratified pairing.")] = 0.7,
    low_threshold: Annotated[float, typer.Option(help="Of stratified pairing.")] = 0.3,
    dedupe: Dedupe = True,
    validation: Validation = "0%",
    seed: Seed = 0,
    max_bad: MaxBad = "1%",
    reasoning: ReasoningOption = None,
    model: Model = None,
    configs: Configs = True,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Pairs of a better and a worse answer to the same prompt, for DPO.

    \b
    rlbridge transform dpo rollouts.jsonl -o dpo.jsonl --min-gap 0.2
    rlbridge transform dpo rollouts.jsonl -o dpo.jsonl --pairs 4 --seed 1
    rlbridge transform dpo rollouts.jsonl -o dpo.jsonl --strategy stratified --high-threshold 0.6
    """  # noqa: D301 # click reads the backspace: keep these lines
    from rlbridge.transforms import dpo as transform_dpo
    from rlbridge.transforms.pairs import Pairing

    selection = _selection(None, None, 0, Keep.RANDOM, dedupe, validation, seed)
    pairing = Pairing(strategy.value, _pairs(pairs), min_gap, high_threshold, low_threshold)
    with _work(inputs, output, max_bad, workers, as_json) as more:
        style = style_for(model, reasoning)
        job = transform_dpo.job(
            tuple(inputs), output, selection, pairing, format=format.value, style=style, **more
        )
        report = transform_dpo.transform(job, pairing, format.value)
    _finish(job, report, model, configs, as_json)


app.command()(check)


def _selection(
    threshold: float | None, ceiling: float | None, most: int, keep: Keep, dedupe: bool,
    validation: str, seed: int,
) -> "Selection":  # fmt: skip
    from rlbridge.transforms.selection import Selection

    held_out = share(validation, "--validation")
    return Selection(threshold, ceiling, dedupe, most, keep.value, held_out, seed)


def _pairs(text: str) -> Any:
    if text in ("best", "all"):
        return text
    if not text.isdigit():
        raise ConfigError(f"--pairs is best, all or a number, got {text!r}")
    return int(text)


@contextmanager
def _work(
    inputs: list[Path], output: Path, max_bad: str, workers: int | None, quiet: bool
) -> "Iterator[dict[str, Any]]":
    """The rejects file, the processes and the progress bar of a job."""
    from rlbridge.transforms.rejects import Rejects
    from rlbridge.transforms.workers import worthwhile_workers

    check_inputs(inputs)
    if output.resolve() in [path.resolve() for path in inputs]:
        raise ConfigError(f"{output} is both read and written; give --output another name")
    rejects_path = output.with_name(output.name + ".rejects.jsonl")
    rejects_path.unlink(missing_ok=True)
    rejects = Rejects(rejects_path, allowed_share=share(max_bad, "--max-bad"))
    total = sum(path.stat().st_size for path in inputs)
    with progress_bar(total, "reading", quiet=quiet) as advance:
        processes = workers or worthwhile_workers(inputs)
        yield {"rejects": rejects, "progress": advance, "workers": processes}


def _finish(job: "Job", report: "Report", model: str | None, configs: bool, as_json: bool) -> None:
    made = []
    if configs:
        from rlbridge.transforms.configs import write_configs

        made = write_configs(job, report.written[str(job.output)], model)
    if as_json:
        document = report.to_json() | {"configs": [str(path) for path in made]}
        typer.echo(json.dumps(document))
        return
    _print_report(job, report)
    for path in made:
        typer.echo(f"config   {path}")


def _print_report(job: "Job", report: "Report") -> None:
    typer.echo(f"read     {report.read:,} rows, {report.prompts:,} prompts")
    lost = [(count, f"bad: {kind}") for kind, count in report.rejected.items()]
    lost += [(count, reason) for reason, count in report.invalid.most_common()]
    lost += [(count, reason) for reason, count in report.skipped.most_common()]
    lost += [
        (report.outside, "outside the reward thresholds"),
        (report.duplicates, "duplicates"),
        (report.over_limit, "beyond --max-per-prompt"),
    ]
    for count, reason in lost:
        if count:
            typer.echo(f"left out {count:,} {reason}")
    if job.rejects.count:
        typer.echo(f"         bad lines are kept in {job.rejects.path}")
    for path, count in report.written.items():
        typer.echo(f"wrote    {count:,} to {path}")
    typer.echo(f"made by  {job.output}.meta.json")
