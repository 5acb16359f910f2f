"""The `rlbridge` command: puts the subcommands together and turns errors into one line."""

import sys

import typer

from rlbridge import __version__
from rlbridge.cli import gateway, gym, rollouts, tokens, transform
from rlbridge.cli.export import export
from rlbridge.cli.plugins import plugins
from rlbridge.cli.run import run
from rlbridge.errors import RLBridgeError

app = typer.Typer(
    name="rlbridge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(export)
app.command()(plugins)
app.add_typer(gateway.app, name="gateway")
app.add_typer(gym.app, name="gym")
app.add_typer(tokens.app, name="tokens")
app.add_typer(rollouts.app, name="rollouts")
app.add_typer(transform.app, name="transform")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"rlbridge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Plug any verifiable environment into any RL trainer.

    What this machine can train and judge with, what a run would be, and the run:

        rlbridge plugins

        rlbridge run --config run.yaml --dry-run

        rlbridge run --config run.yaml
    """


def main() -> None:
    """Entry point: an error of ours is a message and exit status 1, never a traceback."""
    try:
        app()
    except RLBridgeError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        sys.exit(1)
