"""`rlbridge rollouts validate` and `stats`: what files hold, and can it be trusted."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlbridge.cli.rollout_options import check_inputs, progress_bar, share
from rlbridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlbridge.rollouts.stats import Stats
    from rlbridge.rollouts.validate import Validation
    from rlbridge.transforms.reading import Reader

_Files = Annotated[
    list[Path],
    typer.Argument(
        help="Rollout files: .jsonl, .jsonl.gz, .jsonl.zst or .parquet.", metavar="ROLLOUTS..."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_MaxBad = Annotated[str, typer.Option(help="Share of lines that may be no JSON objects.")]

_BAR = 40


def validate(
    files: _Files,
    targets: Annotated[
        str,
        typer.Option(
            "--for",
            help="Formats the rows must serve: grpo, grpo-gym, sft, sft-simple, dpo, "
            "dpo-openai; several with commas.",
        ),
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="Measure token drift with this model's tokenizer.")
    ] = None,
    max_bad: _MaxBad = "0%",
    as_json: _Json = False,
) -> None:
    """Check rows: schema, fields by target format, token truth. Exits with 1 on an error.

    \b
    rlbridge rollouts validate rollouts.jsonl
    rlbridge rollouts validate rollouts.jsonl --for sft,dpo --model Qwen/Qwen3-8B
    """  # noqa: D301 # click reads the backspace: keep these lines
    from rlbridge.rollouts.validate import validate as look

    converters = _converters(targets)
    drift = _Drift(model) if model is not None else None
    with _reader(files, max_bad, as_json) as reader:
        found = look(reader, converters, drift.add if drift else None)
    if drift is not None:
        found.drift, found.drift_turns = drift.survey.kinds, drift.survey.turns
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        _print_validation(found, list(converters))
    if found.errors:
        raise typer.Exit(1)


def stats(
    files: _Files,
    pass_reward: Annotated[
        float, typer.Option(help="A reward of at least this passed, for pass@k.")
    ] = 0.5,
    html: Annotated[
        Path | None, typer.Option(help="Write a report that opens offline in any browser.")
    ] = None,
    max_bad: _MaxBad = "1%",
    as_json: _Json = False,
) -> None:
    """Rewards, environments, pass@k, groups without a signal, lengths, failures.

    \b
    rlbridge rollouts stats rollouts.jsonl
    rlbridge rollouts stats rollouts*.jsonl.zst --html report.html
    """  # noqa: D301 # click reads the backspace: keep these lines
    from rlbridge.rollouts.stats import stats_of
    from rlbridge.transforms.writing import write_text

    with _reader(files, max_bad, as_json) as reader:
        found = stats_of(reader, pass_reward=pass_reward)
    if html is not None:
        from rlbridge.rollouts.report import html_report

        html.parent.mkdir(parents=True, exist_ok=True)
        write_text(html, html_report(found, [str(path) for path in files]))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    _print_stats(found)
    if html is not None:
        typer.echo(f"report   {html}")


class _Drift:
    """Surveys rollouts one at a time, so that none is kept."""

    def __init__(self, model: str) -> None:
        from rlbridge.cli.tokenizers import load_tokenizer, turn_ends
        from rlbridge.onpolicy.survey import Survey

        self._tokenizer = load_tokenizer(model)
        self._ends = turn_ends(model, self._tokenizer)
        self.survey = Survey()

    def add(self, rollout: Any) -> None:
        from rlbridge.onpolicy.survey import survey

        one = survey([rollout], self._tokenizer, ends=self._ends)
        self.survey.turns += one.turns
        self.survey.drifted += one.drifted


@contextmanager
def _reader(files: list[Path], max_bad: str, quiet: bool) -> "Iterator[Reader]":
    from rlbridge.transforms.reading import Reader
    from rlbridge.transforms.rejects import Rejects

    check_inputs(files)
    rejects = Rejects(allowed_share=share(max_bad, "--max-bad"))
    total = sum(path.stat().st_size for path in files)
    with progress_bar(total, "reading", quiet=quiet) as advance:
        yield Reader(files, rejects=rejects, progress=advance)
    if rejects.count:
        typer.echo(f"{rejects.count} bad lines; the first: {rejects.first}", err=True)


def _converters(targets: str) -> dict[str, Any]:
    from rlbridge.transforms import dpo, grpo, sft
    from rlbridge.transforms.pairs import Pairing
    from rlbridge.transforms.selection import Selection

    nowhere, everything = Path("none.jsonl"), Selection()
    jobs = {
        "grpo": lambda: grpo.job((), nowhere, everything),
        "grpo-gym": lambda: grpo.job((), nowhere, everything, format="gym"),
        "sft": lambda: sft.job((), nowhere, everything),
        "sft-simple": lambda: sft.job((), nowhere, everything, format="simple"),
        "dpo": lambda: dpo.job((), nowhere, everything, Pairing()),
        "dpo-openai": lambda: dpo.job((), nowhere, everything, Pairing(), format="openai"),
    }
    wanted = [name.strip() for name in targets.split(",") if name.strip()]
    for name in wanted:
        if name not in jobs:
            raise ConfigError(f"--for knows {', '.join(jobs)}; not {name!r}")
    return {name: jobs[name]().convert for name in wanted}


def _print_validation(found: "Validation", targets: list[str]) -> None:
    typer.echo(
        f"rows     {found.rows:,}, {found.with_tokens:,} with token IDs ({found.turns:,} calls)"
    )
    for name in targets:
        typer.echo(f"for {name:<10} {found.usable[name]:,} can be used")
    if found.drift_turns is not None:
        drifted = sum(found.drift.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.drift.most_common())
        typer.echo(
            f"drift    {drifted:,} of {found.drift_turns:,} later calls"
            + (f": {kinds}" if kinds else "")
        )
    for finding in sorted(found.findings.values(), key=lambda f: (f.severity, -f.rows)):
        typer.secho(
            f"{finding.severity:<8} {finding.rows:,} {finding.kind}",
            fg="red" if finding.severity == "error" else "yellow",
        )
        for place in finding.places:
            typer.echo(f"         {place}")
    if not found.findings:
        typer.echo("nothing to complain of")


def _print_stats(found: "Stats") -> None:
    from rich.console import Console

    from rlbridge.rollouts.report import bins_of

    console = Console(highlight=False, markup=False)
    say = console.print
    say(
        f"rollouts {found.rows:,}, {len(found.rewards):,} with a valid reward, "
        f"{found.prompts:,} prompts"
    )
    for reason, count in found.invalid.most_common():
        say(f"invalid  {count:,} {reason}")
    if len(found.rewards):
        say(f"\nreward, mean {found.rewards.mean():.4g}")
        _bars(say, *bins_of(found.rewards, 12))
    _print_groups(say, found)
    if len(found.environments) > 1 or found.rows:
        say("\nenvironment, rollouts, invalid, mean reward")
        for name, e in list(found.environments.items())[:20]:
            mean = "none" if e.mean is None else f"{e.mean:.4g}"
            say(f"  {name}  {e.rows:,}  {e.invalid:,}  {mean}")
    for title, values in (("sampled tokens", found.tokens), ("characters", found.answer_chars)):
        if len(values):
            say(f"\n{title} a rollout, mean {values.mean():.4g}")
            _bars(say, *bins_of(values, 8))
    if found.truncated:
        say(f"\n{found.truncated:,} rollouts were cut at the token limit")
    if found.tool_calls:
        calls = ", ".join(f"{name} {n:,}" for name, n in found.tool_calls.most_common(8))
        say(f"\ntool calls: {calls}")
    if found.without_output:
        say(f"\n{found.without_output:,} rows hold no rollout")


def _print_groups(say: Any, found: "Stats") -> None:
    if not found.prompts:
        return
    say(f"\npass@k, passed from {found.pass_reward:g} (unbiased, Chen et al. 2021)")
    for k, value in found.pass_at.items():
        say(f"  k={k:<4} {'█' * round(value * _BAR):<{_BAR}} {value:.1%}")
    several = sum(n for size, n in found.group_sizes.items() if size > 1)
    if several:
        say(
            f"{found.all_equal:,} of {several:,} groups have equal rewards ({found.all_passed:,} "
            f"all passed, {found.all_failed:,} all failed): no signal for GRPO"
        )


def _bars(say: Any, counts: list[int], edges: list[float]) -> None:
    from rlbridge.rollouts.report import labels_of

    top = max(counts)
    for count, label in zip(counts, labels_of(edges), strict=True):
        say(f"  {label:<22} {'█' * round(count / top * _BAR):<{_BAR}} {count:,}")
