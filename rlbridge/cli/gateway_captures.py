"""`rlbridge gateway captures ...`: what gateways kept on disk."""

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlbridge.cli.extras import gateway_extra

if TYPE_CHECKING:
    from rlbridge.gateway.prune_plan import Plan

app = typer.Typer(help="What gateways kept on disk.", no_args_is_help=True, rich_markup_mode=None)

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# Segments in the table; --json lists all.
_SHOWN = 20


@app.command()
def prune(
    folder: Annotated[Path, typer.Argument(help="A gateway's capture folder.")],
    older_than: Annotated[
        str, typer.Option(help="Age of what may go: 90m, 12h, 7d, 2w.", metavar="AGE")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Delete old captures: whole segments, and with each session all of it or nothing.

    A session may go if it has ended, and nothing was written for AGE to any segment
    it is in. Where no gateway runs on the folder, those that never ended may too.
    A segment goes once all its sessions may; what they have in other segments is
    read no more from then on.

    \b
    rlbridge gateway captures prune --older-than 7d --dry-run runs/calls
    rlbridge gateway captures prune --older-than 7d runs/calls

    May run beside a gateway, be killed at any moment, and be run again. Run it on
    the gateway's machine, or where both see one another's file locks. A gateway
    with capture.keep_days or capture.keep_gb deletes by itself.
    """  # noqa: D301 # click reads the backspace: keep these lines
    import json

    with gateway_extra():
        from rlbridge.gateway.pruning import prune as run

    before_s = time.time() - _seconds(older_than)
    plan = run(folder, before_s, dry_run=dry_run, track=_progress)
    if as_json:
        typer.echo(json.dumps(_document(folder, plan, dry_run=dry_run)))
    else:
        typer.echo(_readable(folder, plan, older_than, dry_run=dry_run))


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", age.strip())
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter(
            f"{age!r} is no age: give a number above 0 and m, h, d or w, as in 7d"
        )
    return float(match[1]) * _UNITS_S[match[2]]


def _progress(paths: Sequence[Path]) -> Iterable[Path]:
    from rich.console import Console
    from rich.progress import track

    return track(paths, "reading segments", console=Console(stderr=True), transient=True)


def _readable(folder: Path, plan: "Plan", older_than: str, *, dry_run: bool) -> str:
    lines = []
    if plan.goes:
        width = max(len(segment.path.name) for segment in plan.goes)
        lines.append(f"  {'segment':{width}}  {'last written':16}  {'sessions':>9}  {'MB':>9}")
    for segment in plan.goes[:_SHOWN]:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(segment.written_s))
        lines.append(
            f"  {segment.path.name:{width}}  {written}  {segment.sessions:>9,}  "
            f"{segment.size / 1e6:>9,.1f}"
        )
    if len(plan.goes) > _SHOWN:
        lines.append(f"  and {len(plan.goes) - _SHOWN:,} more (--json lists all)")
    lines.append(
        f"{folder}: {'would delete' if dry_run else 'deleted'} "
        f"{_count(len(plan.goes), 'segment')}, {_count(plan.sessions, 'session')}, "
        f"{plan.bytes / 1e6:,.1f} MB"
    )
    lines.append(
        f"kept: {_count(sum(plan.kept.values()), 'segment')}, {plan.kept_bytes / 1e6:,.1f} MB"
    )
    for why, count in sorted(plan.kept.items()):
        words = f"{why.value} ({older_than})" if why.name == "YOUNG" else why.value
        lines.append(f"  {count:>7,} {words}")
    if any(why.name == "OPEN" for why in plan.kept):
        lines.append(
            "A gateway runs on this folder and may go on with sessions that haven't ended. End "
            "them (DELETE /s/{id}), run this while the gateway is down, or set capture.keep_days."
        )
    return "\n".join(lines)


def _document(folder: Path, plan: "Plan", *, dry_run: bool) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "dry_run": dry_run,
        "gateway_running": plan.gateway,
        "deleted": [
            {
                "segment": segment.path.name,
                "last_written_s": segment.written_s,
                "sessions": segment.sessions,
                "bytes": segment.size,
            }
            for segment in plan.goes
        ],
        "sessions": plan.sessions,
        "bytes": plan.bytes,
        "kept": {why.name.lower(): count for why, count in plan.kept.items()},
        "kept_bytes": plan.kept_bytes,
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
