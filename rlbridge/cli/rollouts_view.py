"""`rlbridge rollouts view`: read rollouts on a page of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from rlbridge.cli.extras import gateway_extra
from rlbridge.cli.rollout_options import progress_bar


def view(
    file: Annotated[Path, typer.Argument(help="Rollouts as .jsonl; a failures file, too.")],
    model: Annotated[
        str | None, typer.Option(help="Show tokens as text, with this model's tokenizer.")
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)
    ] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = False,
    ready_file: Annotated[
        Path | None,
        typer.Option(help='Write {"url", "pid"} here as JSON once connections are accepted.'),
    ] = None,
) -> None:
    """Read rollouts on a page of this machine, turn by turn, token by token, until Ctrl-C.

    Tokens are coloured by where they came from, by logprob, or by whether they are trained.
    Filters and search work over files of any size; the file is read once, and an index of a few
    bytes a row is kept beside it.

    \b
    rlbridge rollouts view rollouts.jsonl
    rlbridge rollouts view rollouts.jsonl --model Qwen/Qwen3-8B --port 8765 --open
    """  # noqa: D301 # click reads the backspace: keep these lines
    import webbrowser
    from contextlib import nullcontext

    from rlbridge.cli.tokenizers import load_tokenizer, turn_ends

    with gateway_extra():
        from rlbridge.rollouts.view.app import View
        from rlbridge.rollouts.view.catalog import Catalog
        from rlbridge.serving import announce, serve

    tokenizer = None if model is None else load_tokenizer(model)
    ends = frozenset() if model is None else frozenset(turn_ends(model, tokenizer))
    size = file.stat().st_size if file.exists() else 0
    with progress_bar(size, f"reading {file.name}") as progress:
        catalog = Catalog.of(file, progress)
    told = announce(ready_file, lambda url: f"{len(catalog):,} rollouts at {url} (Ctrl-C ends)")

    def ready(url: str) -> None:
        told(url)
        if open_browser:
            webbrowser.open(url)

    app = View(catalog, tokenizer, ends).app()
    serve(nullcontext(app), host="127.0.0.1", port=port, ready=ready)
