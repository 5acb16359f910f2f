"""`rlbridge plugins`: what this environment can train and judge with, and why not the rest."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlbridge.evaluators.evaluator import EvaluatorSpec
    from rlbridge.hookspecs import Framework
    from rlbridge.plugins import PluginReport

_HEADINGS = {
    "framework": "frameworks (rlbridge run --framework NAME)",
    "evaluator": "evaluators (rlbridge gym serve NAME)",
    "plugin": "broken plugins",
}


def plugins(
    name: Annotated[
        str | None, typer.Argument(help="Show all about this framework or evaluator.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List frameworks, evaluators and broken plugins, with what makes them available.

    One whose framework or library isn't installed is listed with its install command; one that
    fails to import is listed with the reason. Neither is an error: the exit status is 0.

        rlbridge plugins nemo_rl      # its version, what it can do, how to install it

        rlbridge plugins math         # what this evaluator reads, and its options
    """
    import orjson

    from rlbridge.hookspecs import Framework
    from rlbridge.plugins import Plugins

    found = Plugins()
    document: Any
    if name is None:
        reports = found.report()
        document, lines = [asdict(report) for report in reports], listed(reports)
    else:
        report, item = found.described(name)
        if isinstance(item, Framework):
            more, lines = _of_framework(item), _framework_lines(report, item)
        else:
            more, lines = _of_evaluator(item), _evaluator_lines(report, item)
        document = asdict(report) | more
    if as_json:
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        return
    for line in lines:
        typer.echo(line)


def listed(reports: "list[PluginReport]") -> Iterator[str]:
    """A line for each, and its install command on a line of its own, to be copied whole."""
    kind = None
    width = max((len(report.name) for report in reports), default=0)
    for report in reports:
        if report.kind != kind:
            yield _HEADINGS[report.kind] if kind is None else f"\n{_HEADINGS[report.kind]}"
            kind = report.kind
        here = f" (installed: {report.version})" if report.version else ""
        what = f"{report.summary}{here}" if report.available else report.reason
        where = f" ({report.plugin})" if report.kind == "plugin" else ""
        yield f"  {report.name:{width}}  {what}{where}"
        if report.install:
            yield f"  {'':{width}}  {report.install}"
    yield "\nrlbridge plugins NAME shows all about one of them"


def _of_framework(framework: "Framework") -> dict[str, Any]:
    return {
        "supported": framework.supported,
        "algorithms": list(framework.algorithms),
        "export": framework.exporter is not None,
        "prompts": framework.prompts,
        "code": code_of(framework),
    }


def _framework_lines(report: "PluginReport", framework: "Framework") -> Iterator[str]:
    name, code = framework.name, code_of(framework)
    yield from _head(report, "version")
    if framework.supported:
        yield f"  supported  {framework.supported}"
    yield f"  launch     rlbridge run --framework {name} --config run.yaml"
    if framework.algorithms:
        yield f"             algorithm.name: {', '.join(framework.algorithms)}"
    if framework.exporter is None:
        yield "  export     no converter that rlbridge knows of"
    else:
        yield f"  export     rlbridge export RUN FOLDER --framework {name}"
    made = "data.prompt makes them of rows of raw fields" if framework.prompts else "in the rows"
    yield f"  prompts    {made}"
    if code:
        yield f"  code       {code}"
    yield f"  plugin     {report.plugin}"


def _head(report: "PluginReport", versioned: str) -> Iterator[str]:
    """Name and summary, and whether it can be used; `versioned` says what has the version."""
    yield f"{report.name}: {report.summary}"
    yield ""
    found = f", {versioned} {report.version}" if report.version else ""
    yield f"  status     {f'ready{found}' if report.available else report.reason}"
    if report.install:
        yield f"  install    {report.install}"


def code_of(framework: "Framework") -> str | None:
    """The folder that the framework would be imported from; None where it isn't installed."""
    for module in framework.requires[:1]:
        found = importlib.util.find_spec(module.partition(".")[0])
        places = (found.submodule_search_locations or ()) if found else ()
        return next((str(Path(place)) for place in places), None)
    return None


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


def _of_evaluator(spec: "EvaluatorSpec") -> dict[str, Any]:
    options = {key: asdict(item) for key, item in options_of(spec).items()}
    return {"fields": dict(spec.fields), "options": options}


def _evaluator_lines(report: "PluginReport", spec: "EvaluatorSpec") -> Iterator[str]:
    yield from _head(report, f"with {', '.join(spec.requires[:1])}")
    yield f"  serve      rlbridge gym serve {spec.name} --option KEY=VALUE"
    yield f"  plugin     {report.plugin}"
    yield "\nrow fields:"
    yield from (f"  {name}: {_line(text)}" for name, text in spec.fields.items())
    yield "\noptions:"
    for name, option in options_of(spec).items():
        default = "required" if option.default is None else _line(option.default)[:60]
        yield f"  {name} ({default}): {_line(option.help)}"


def _line(text: str) -> str:
    return " ".join(text.split())
