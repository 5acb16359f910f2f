"""`rlbridge tokens ...`: find token drift in rollouts, and its causes in a chat template."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlbridge.cli.tokenizers import load_tokenizer, turn_ends
from rlbridge.errors import ConfigError, ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlbridge.contracts.rollout import Rollout
    from rlbridge.onpolicy.survey import Survey

app = typer.Typer(help="Token drift: find it in rollouts, find its causes in a chat template.")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def drift(
    file: Annotated[
        Path,
        typer.Argument(help="Rollouts: rlbridge's JSONL or npz, or Gym's JSONL with token fields."),
    ],
    model: Annotated[str, typer.Option(help="The model whose tokenizer made the tokens.")],
    budget: Annotated[
        str, typer.Option(help="Exit with status 1 if more turns drift: 0.5%, or 0.005.")
    ] = "100%",
    as_json: _Json = False,
) -> None:
    """Count the turns whose prompt isn't what the engine had, by kind."""
    from rlbridge.onpolicy.survey import picture, survey

    allowed = _share(budget)
    tokenizer = load_tokenizer(model)
    found = survey(_rollouts(file), tokenizer, ends=turn_ends(model, tokenizer))
    if as_json:
        kinds = dict(found.kinds.most_common())
        document = {"turns": found.turns, "drifted": len(found.drifted), "share": found.share}
        typer.echo(json.dumps(document | {"kinds": kinds}))
    else:
        _print_survey(found)
        if found.drifted:
            typer.echo("\n" + picture(found.drifted[0], tokenizer))
    if found.share > allowed:
        typer.echo(f"{found.share:.2%} of the turns drift; the budget is {budget}", err=True)
        raise typer.Exit(1)


@app.command()
def lint(
    model: Annotated[str, typer.Argument(help="A model, or a folder with a tokenizer.")],
    as_json: _Json = False,
) -> None:
    """Report what a chat template keeps of a conversation, what it breaks, and the mend."""
    from rlbridge.onpolicy.lint import lint as try_all
    from rlbridge.onpolicy.lint import worst
    from rlbridge.onpolicy.template import ChatTemplate

    tokenizer = load_tokenizer(model)
    if not tokenizer.chat_template:
        raise ConfigError(f"{model} has no chat template; nothing to lint")
    template = ChatTemplate(tokenizer)
    findings = try_all(template)
    if as_json:
        rows = [asdict(finding) | {"fine": finding.fine} for finding in findings]
        document = {"turn_end": template.turn_end, "verdict": worst(findings), "findings": rows}
        typer.echo(json.dumps(document))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("role", "after or with", "text", "tokens", "bridge", "what breaks and the mend")
    for finding in findings:
        words = "not rendered" if not finding.renders else finding.detail
        table.add_row(
            finding.role,
            finding.feature,
            *(_mark(v) for v in (finding.text_kept, finding.tokens_kept, finding.bridge)),
            words + (f"\nMend: {finding.mend}" if finding.mend else ""),
        )
    console = Console()
    console.print(table)
    console.print(f"turn end: {template.turn_end or 'none'}; {worst(findings)}", markup=False)


def _mark(value: bool | None) -> str:
    return "" if value is None else "kept" if value else "broken"


def _print_survey(found: "Survey") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("kind", "turns", "share")
    for kind, count in found.kinds.most_common():
        table.add_row(kind, str(count), f"{count / found.turns:.2%}")
    table.add_row("all drift", str(len(found.drifted)), f"{found.share:.2%}")
    table.add_row("turns that could drift", str(found.turns), "")
    Console().print(table)


def _share(text: str) -> float:
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"--budget must be a share such as 0.5% or 0.005, got {text!r}")
    return value


def _rollouts(file: Path) -> "Iterator[Rollout]":
    from rlbridge.contracts.codecs import files

    if not file.exists():
        raise ConfigError(f"no file {file}")
    if file.suffix == ".npz":
        yield from files.rollouts_from_npz(file.read_bytes())
        return
    with file.open() as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rollout = _rollout(line, f"{file}:{number}")
                if rollout is not None:
                    yield rollout


def _rollout(line: str, where: str) -> "Rollout | None":
    """A line of rlbridge's own format or of Gym's; None for a Gym row without token fields."""
    from rlbridge.contracts.codecs import files, gym
    from rlbridge.contracts.rollout import Rollout

    try:
        document = json.loads(line)
        if "turns" in document:
            return files.rollout_from_json(document)
        turns = gym.turns_from_response(document.get("response") or {})
    except (ValueError, AttributeError) as error:  # ContractError is a ValueError
        raise ContractError(f"{where}: {error}") from error
    return Rollout(where, turns) if turns else None
