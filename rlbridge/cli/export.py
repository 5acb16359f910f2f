"""`rlbridge export`: a checkpoint in Hugging Face's format, by its framework's own converter."""

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from rlbridge.errors import ConfigError, RunError

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

    Runs the converter that comes with the framework, and shows what it prints. The folder gets
    its name once it is whole.

        rlbridge export runs/math models/math-rl
    """
    from rlbridge.plugins import Plugins

    exporter = Plugins().exporter(framework)
    source, target = checkpoint.resolve(), output.resolve()
    if target.exists():
        raise ConfigError(f"{target} exists already; name a new folder")
    if dry_run:
        typer.echo(shlex.join(exporter(source, target).command))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        made = Path(folder) / target.name
        found = exporter(source, made)
        typer.echo(shlex.join(found.command))
        status = subprocess.run(found.command, check=False).returncode
        if status or not made.is_dir():
            raise RunError(f"the converter ended with status {status}; nothing was written")
        for path in found.beside:
            shutil.copy(path, made / path.name)
        made.rename(target)
    typer.echo(f"wrote {target}")
