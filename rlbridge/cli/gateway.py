"""`rlbridge gateway ...`: put an OpenAI-compatible server with exact tokens before a policy."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rlbridge.cli import gateway_captures
from rlbridge.cli.extras import gateway_extra
from rlbridge.errors import ConfigError

app = typer.Typer(
    help="An OpenAI-compatible server before a policy: any agent in, exact tokens out.",
    no_args_is_help=True,
)
app.add_typer(gateway_captures.app, name="captures")


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML file; the options below win over it.", show_default=False),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Base URL of the policy's engine (vLLM, NeMo-RL, ...).")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name; else the name the engine serves.")
    ] = None,
    gym: Annotated[
        str | None, typer.Option(help="Base URL of a resources server, for /run and /generate.")
    ] = None,
    evaluator: Annotated[
        str | None, typer.Option(help="Evaluator that judges instead of the Gym.")
    ] = None,
    capture_dir: Annotated[
        Path | None, typer.Option(help="Keep every call in files here, append-only.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind [127.0.0.1]; others need --token-file.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port [8100]; 0 takes any free one.", min=0, max=65535)
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Ask for the token in this file; made, for you alone, if missing."),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help='Write {"url", "pid"} here as JSON once connections are accepted.'),
    ] = None,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when the starting process is gone.")
    ] = False,
) -> None:
    """Serve a policy to OpenAI clients and Gym agents until Ctrl-C or SIGTERM.

    Before a vLLM on this machine, every call kept in files:

        rlbridge gateway serve --policy http://127.0.0.1:8000 --tokenizer MODEL --capture-dir runs

    An agent needs a base URL and nothing else; one rollout is one session in it:

        OpenAI(base_url="http://127.0.0.1:8100/s/rollout-1/v1", api_key="none")

    With `--gym http://127.0.0.1:18080` it plays and scores whole rollouts itself: POST a Gym row
    to /run. Everything else is set in the YAML file (docs/gateway.md).
    """
    from rlbridge.cli.tokenizers import load_tokenizer
    from rlbridge.serving import announce
    from rlbridge.serving import serve as run

    server_module = _server_module()
    given = {
        "tokenizer": tokenizer,
        "host": host,
        "port": port,
        "token_file": token_file,
        "policy": None if policy is None else {"url": policy},
        "gym": None if gym is None else {"url": gym},
        "evaluator": None if evaluator is None else {"name": evaluator},
        "capture": None if capture_dir is None else {"folder": capture_dir},
    }
    settings = server_module.read_config(config, {k: v for k, v in given.items() if v is not None})
    server = server_module.Server(settings, load_tokenizer)
    typer.echo(f"waiting for the policy ({_source(settings)}) ...", err=True)
    run(
        server.open(),
        host=settings.host,
        port=settings.port,
        ready=announce(ready_file, lambda url: f"ready: {server.describe(url)}"),
        parent=os.getppid() if exit_with_parent else None,
        drain_s=settings.drain_s,
        draining=server.drain,
    )


@app.command()
def status(
    url: Annotated[str, typer.Argument(help="Base URL of a gateway.")] = "http://127.0.0.1:8100",
    token_file: Annotated[Path | None, typer.Option(help="File with its token.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Ask a running gateway what stands behind it and what it has done.

    Exit status 0 if it can answer calls, else 2.
    """
    import json

    import httpx

    headers = {}
    if token_file is not None:
        headers["Authorization"] = f"Bearer {token_file.read_text().strip()}"
    try:
        answer = httpx.get(f"{url.rstrip('/')}/status", headers=headers, timeout=10)
        answer.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise ConfigError(
            f"{url} answered {error.response.status_code}; is it a gateway, and does it want "
            "--token-file?"
        ) from error
    except httpx.HTTPError as error:
        raise ConfigError(f"no gateway answers at {url}: {error}") from error
    document = answer.json()
    typer.echo(json.dumps(document) if as_json else _readable(url, document))
    if not document["ready"]:
        raise typer.Exit(2)


def _readable(url: str, document: dict[str, Any]) -> str:
    engine = document["engine"]
    state = "ready" if document["ready"] else f"not ready: {document['reason']}"
    lines = [
        f"{url}: {state}, up {document['uptime_s']:.0f} s",
        f"policy {engine['model']} by {engine['wire']}, "
        + ("exact tokens" if engine["tokens"] else "text only: nothing can be trained on"),
    ]
    for replica in document["replicas"]:
        state = "admitted" if replica["admitted"] else "up" if replica["up"] else "DOWN"
        lines.append(
            f"  {replica['url']}: {state}, {replica['outstanding']} outstanding, "
            f"{replica['requests']} calls, {replica['failures']} failures, "
            f"weights {replica['version'] or 'unknown'}"
        )
    width = max((len(name) for name in document["counts"]), default=0)
    lines += [f"  {name:{width}} {value:>12,}" for name, value in document["counts"].items()]
    return "\n".join(lines)


def _source(settings: Any) -> str:
    policy = settings.policy
    given = policy.url or policy.gym_head or policy.file
    if given is None:
        given = policy.ray.name if policy.ray else ", ".join(str(url) for url in policy.urls)
    return f"{given}, at most {policy.ready_timeout_s:g} s"


def _server_module() -> Any:
    with gateway_extra("the gateway"):
        from rlbridge.gateway import server
    return server
