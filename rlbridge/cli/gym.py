"""`rlbridge gym ...`: serve an evaluator as a Gym, check any Gym."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rlbridge.cli.rollout_options import Prompt

app = typer.Typer(help="Serve an evaluator as a Gym, or check any Gym.", no_args_is_help=True)


@app.command()
def serve(
    name: Annotated[
        str, typer.Argument(help="An evaluator, see `rlbridge plugins`.")
    ] = "arithmetic",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", help="An option of the evaluator as KEY=VALUE; VALUE is YAML."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with options; --option comes first.")
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)
    ] = 18080,
    host: Annotated[
        str, typer.Option(help="Address to bind. Others than loopback let anybody in.")
    ] = "127.0.0.1",
    ready_file: Annotated[
        Path | None,
        typer.Option(help='Write {"url", "pid"} here as JSON once connections are accepted.'),
    ] = None,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when the starting process is gone.")
    ] = False,
) -> None:
    """Serve an evaluator on NeMo Gym's wire until Ctrl-C or SIGTERM.

    `rlbridge plugins` lists evaluators, `rlbridge plugins math` the options of one. A row that
    lacks what the evaluator reads is refused with 422; a verdict that can't be had is marked
    (`_ng_failure_class`, `mask_sample`), so that nobody takes it for a 0.0.

        rlbridge gym serve arithmetic --port 18080

        rlbridge gym serve math --option cpu_s=10 --option workers=4

        rlbridge gym serve judge --config judge.yaml

        rlbridge gym check http://127.0.0.1:18080 --rows rows.jsonl
    """
    from rlbridge.gym.embedded.serve import open_app
    from rlbridge.plugins import Plugins
    from rlbridge.serving import announce
    from rlbridge.serving import serve as run

    parent = os.getppid() if exit_with_parent else None
    opening = open_app(Plugins().evaluator_spec(name), _options(config, option or []))
    ready = announce(ready_file, lambda url: f"ready: {name} at {url}")
    run(opening, host=host, port=port, ready=ready, parent=parent)


def _options(config: Path | None, pairs: list[str]) -> dict[str, Any]:
    """The options of a file, then those of the command line; `a.b=1` is `{a: {b: 1}}`."""
    import yaml

    from rlbridge.errors import ConfigError

    def read(text: str, where: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: not YAML: {error}") from error

    options: dict[str, Any] = {}
    if config is not None:
        try:
            found = read(config.read_text(encoding="utf-8"), str(config))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't read {config}: {error}") from error
        if found is not None and not isinstance(found, dict):
            raise ConfigError(f"{config}: options are a mapping, not a {type(found).__name__}")
        options = found or {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--option {pair!r}: write KEY=VALUE")
        *path, last = key.strip().split(".")
        place = options
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--option {pair!r}: {part} is no mapping")
        place[last] = read(value, f"--option {pair!r}")
    return options


@app.command()
def check(
    url: Annotated[str, typer.Argument(help="Base URL of a resources server, without /verify.")],
    rows: Annotated[Path, typer.Option(help="Rows as Gym JSONL; some with a `response`, ideally.")],
    limit: Annotated[int, typer.Option(help="Rows to try.", min=1)] = 32,
    prompt: Prompt = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Probe a Gym server: is each row judged, how fast, twice alike; what of bad rows?

    Exit status 0 if every row was judged and twice alike, else 2.

        rlbridge gym check http://127.0.0.1:18080 --rows rows.jsonl
    """
    import asyncio
    import json

    from rlbridge.config import GymConfig
    from rlbridge.gym import GymClient
    from rlbridge.gym.check import check as probe
    from rlbridge.prompts import PromptConfig
    from rlbridge.rows import read_rows

    async def run() -> Any:
        fields = {"url": url, "deterministic": False, "outage_patience_s": 0.0}
        async with GymClient(GymConfig.parse(fields, where="gym check")) as gym:
            return await probe(gym, todo)

    made = PromptConfig.load(prompt) if prompt else None
    todo = [row for _, row in read_rows(rows, limit, made)]
    report = asyncio.run(run())
    typer.echo(json.dumps(report.as_json()) if as_json else _readable(report))
    if not report.ok:
        raise typer.Exit(2)


def _readable(report: Any) -> str:
    twice = [row for row in report.rows if row.deterministic is not None]
    alike = sum(row.deterministic for row in twice)
    lines = [
        f"{report.url}: {len(twice)} of {len(report.rows)} rows judged",
        f"same verdict twice: {alike} of {len(twice)}",
        f"latency: median {report.latency_p50_s * 1e3:.0f} ms, "
        f"max {report.latency_max_s * 1e3:.0f} ms",
    ]
    lines += [f"rows[{row.index}]: {row.problem}" for row in report.rows if row.problem]
    lines.append("rows that are wrong on purpose:")
    lines += [f"  {kind}: {verdict}" for kind, verdict in report.bad_rows.items()]
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)
