"""`rlbridge plugins`: what this environment can train and judge with, and why not the rest."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from rlbridge.evaluators.evaluator import EvaluatorSpec
    from rlbridge.plugins import PluginReport


def plugins(
    name: Annotated[
        str | None, typer.Argument(help="Show this evaluator's row fields and options.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List frameworks, evaluators and broken plugins, with what makes them available.

    One whose framework or library isn't installed is listed with its install command; one that
    fails to import is listed with the reason. Neither is an error: the exit status is 0.

        rlbridge plugins math         # what this evaluator reads, and its options
    """
    import orjson
    from rich.console import Console

    from rlbridge.plugins import Plugins

    found = Plugins()
    if name is not None:
        spec = found.evaluator_spec(name)
        what = {"name": name, "summary": spec.summary, "fields": dict(spec.fields)}
        known = {key: asdict(item) for key, item in options_of(spec).items()}
        if as_json:
            typer.echo(orjson.dumps(what | {"options": known}, option=orjson.OPT_INDENT_2).decode())
        else:
            typer.echo(_readable(spec))
        return
    reports = found.report()
    if as_json:
        rows = [asdict(report) for report in reports]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    Console().print(table_of(reports))


@dataclass(frozen=True, slots=True)
class Option:
    """One option of an evaluator: its default as JSON, None where it is required."""

    default: str | None
    help: str


def options_of(spec: "EvaluatorSpec") -> dict[str, Option]:
    """What the evaluator's `make` takes, by name; empty if it has no model of that."""
    if spec.options is None:
        return {}
    found = {}
    for name, field in spec.options.model_fields.items():
        value = field.get_default(call_default_factory=True)
        default = None if field.is_required() else json.dumps(value, default=str)
        found[name] = Option(default, field.description or "")
    return found


def _readable(spec: "EvaluatorSpec") -> str:
    lines = [f"{spec.name}: {spec.summary}", "", "row fields:"]
    lines += [f"  {name}: {_line(text)}" for name, text in spec.fields.items()]
    lines += ["", f"options (rlbridge gym serve {spec.name} --option KEY=VALUE):"]
    for name, option in options_of(spec).items():
        default = "required" if option.default is None else _line(option.default)[:60]
        lines.append(f"  {name} ({default}): {_line(option.help)}")
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def table_of(reports: "list[PluginReport]") -> "Table":
    """The reports as a table; texts are shown as they are, square brackets too."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2), header_style="bold")
    for name in ("kind", "name", "available", "version", "what it is, or why it isn't there"):
        table.add_column(name)
    for report in reports:
        why = report.summary if report.available else f"{report.reason}\n{report.install or ''}"
        state = "yes" if report.available else "no"
        cells = (report.kind, report.name, state, report.version or "-", why.strip())
        table.add_row(*(Text(cell) for cell in cells))
    return table
