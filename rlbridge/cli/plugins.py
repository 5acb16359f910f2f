"""`rlbridge plugins`: which frameworks this environment can train with, and why not the others."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from rlbridge.plugins import PluginReport


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List frameworks and plugins, good and broken, with what makes them available.

    A plugin whose framework isn't installed is listed with its install command; one that fails to
    import is listed with the reason. Neither is an error of this command: the exit status is 0.
    """
    import orjson
    from rich.console import Console

    from rlbridge.plugins import Plugins

    reports = Plugins().report()
    if as_json:
        rows = [asdict(report) for report in reports]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    Console().print(table_of(reports))


def table_of(reports: "list[PluginReport]") -> "Table":
    """The reports as a table; texts are shown as they are, square brackets too."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2), header_style="bold")
    for name in ("framework", "available", "version", "what it is, or why it isn't there"):
        table.add_column(name)
    for report in reports:
        why = report.summary if report.available else f"{report.reason}\n{report.install or ''}"
        state = "yes" if report.available else "no"
        cells = (report.name, state, report.version or "-", why.strip())
        table.add_row(*(Text(cell) for cell in cells))
    return table
