"""`rlbridge export`: a checkpoint in Hugging Face's format, by its framework's own converter."""

import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from rlbridge.errors import RunError

Checkpoint = Annotated[Path, typer.Argument(help="A run's output_dir, or one checkpoint in it.")]
Output = Annotated[Path, typer.Argument(help="The folder to make.")]
Framework = Annotated[str, typer.Option("--framework", "-f", help="What made the checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the command; convert nothing.")]


def export(
    checkpoint: Checkpoint,
    output: Output,
    framework: Framework = "nemo_rl",
    dry_run: DryRun = False,
) -> None:
    """Convert a checkpoint to Hugging Face's format.

    Runs the converter that comes with the framework, and shows what it prints.

        rlbridge export runs/math models/math-rl
    """
    from rlbridge.plugins import Plugins

    command = Plugins().exporter(framework)(checkpoint.resolve(), output.resolve())
    typer.echo(shlex.join(command))
    if dry_run:
        return
    status = subprocess.run(command, check=False).returncode
    if status or not output.is_dir():
        raise RunError(f"the converter ended with status {status}; {output} is not to be used")
    typer.echo(f"wrote {output}")
