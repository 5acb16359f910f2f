"""`rlbridge gym ...`: serve a small Gym, check any Gym."""

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Serve a small Gym, or check any Gym server.", no_args_is_help=True)


@app.command()
def serve(
    name: Annotated[str, typer.Argument(help="Which server: arithmetic.")] = "arithmetic",
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
    r"""Serve a verifier on NeMo Gym's wire until Ctrl-C or SIGTERM.

    `arithmetic` gives 1.0 if the last integer of the answer (inside the last \boxed{} if there
    is one) is the row's `expected_answer`, else 0.0:

        rlbridge gym serve arithmetic --port 18080

        rlbridge gym check http://127.0.0.1:18080 --rows rows.jsonl
    """
    from rlbridge.gym.embedded.serve import announce, load_app
    from rlbridge.gym.embedded.serve import serve as run

    parent = os.getppid() if exit_with_parent else None
    run(load_app(name), host=host, port=port, ready=announce(name, ready_file), parent=parent)
