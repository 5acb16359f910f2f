"""`rlbridge rollouts ...`: collect rollouts, score them again, look at them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlbridge.cli import rollouts_inspect, rollouts_view
from rlbridge.cli.extras import gateway_extra
from rlbridge.cli.rollout_options import Prompt

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from rich.console import Console

app = typer.Typer(
    help="Collect rollouts, score them again, check them, look at them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command()(rollouts_inspect.validate)
app.command()(rollouts_inspect.stats)

INTERRUPTED = 130

Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="Rows go here; the same command again goes on with it."),
]
Concurrency = Annotated[int, typer.Option(help="Rollouts under way at once.", min=1)]
Attempts = Annotated[
    int,
    typer.Option(help="Tries a rollout while servers, not the row, are at fault.", min=1),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try again what earlier runs gave up on.")
]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes", help="Go on although the options differ from the earlier run's."
    ),
]
GiveUpAfter = Annotated[
    int, typer.Option(help="Stop after so many infrastructure failures in a row.", min=1)
]
Evaluator = Annotated[
    str | None, typer.Option(help="Judge with this evaluator: see `rlbridge plugins`.")
]
EvaluatorOptions = Annotated[
    list[str] | None,
    typer.Option("--evaluator-option", help="KEY=VALUE for the evaluator; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


@app.command()
def collect(
    input_: Annotated[
        Path, typer.Option("--input", "-i", help="Gym rows: .jsonl, .gz, .zst or .parquet.")
    ],
    output: Output,
    policy: Annotated[
        str | None,
        typer.Option(help="Base URL of the policy: a vLLM, an rlbridge gateway, any OpenAI API."),
    ] = None,
    gym: Annotated[
        str | None,
        typer.Option(help="Base URL of a resources server: tools, sessions, verdicts."),
    ] = None,
    agent: Annotated[
        str | None, typer.Option(help="Base URL of an agent that plays whole rollouts (/run).")
    ] = None,
    evaluator: Evaluator = None,
    evaluator_option: EvaluatorOptions = None,
    repeats: Annotated[int, typer.Option(help="Rollouts of each row.", min=1, max=4096)] = 1,
    concurrency: Concurrency = 32,
    limit: Annotated[
        int | None, typer.Option(help="Use so many rows, from the top.", min=1)
    ] = None,
    prompt: Prompt = None,
    model: Annotated[
        str | None, typer.Option(help="The policy's model name; asked of the server by default.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of the policy; its model's name by default.")
    ] = None,
    agent_name: Annotated[
        str, typer.Option(help="`agent_ref` of rows that have none; tells environments apart.")
    ] = "rlbridge",
    policy_wait_s: Annotated[
        float, typer.Option(help="How long the policy may take to come up, seconds.", min=0.001)
    ] = 60.0,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the policy's API key.")
    ] = "OPENAI_API_KEY",
    temperature: Annotated[
        float | None, typer.Option(help="Instead of the rows' own.", min=0.0)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Instead of the rows' own.", min=0.0, max=1.0)
    ] = None,
    max_output_tokens: Annotated[
        int | None, typer.Option(help="Of one answer; instead of the rows' own.", min=1)
    ] = None,
    max_turns: Annotated[int, typer.Option(help="Model calls a rollout at most.", min=1)] = 32,
    rollout_timeout_s: Annotated[
        float, typer.Option(help="Longest a rollout may take, seconds.", min=0.001)
    ] = 1800.0,
    attempts: Attempts = 3,
    give_up_after: GiveUpAfter = 100,
    retry_failed: RetryFailed = False,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Sort the rows by task and repeat at the end.")
    ] = False,
    accept_changes: AcceptChanges = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Spread the work over this Ray cluster; `auto` finds the one here."),
    ] = None,
    ray_workers: Annotated[
        int, typer.Option(help="Worker processes on the cluster, together --concurrency.", min=1)
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """Collect rollouts: ask a policy, answer its tool calls, have each judged, keep every row.

    May be stopped at any moment, by kill -9 too: the same command again goes on, with no row lost
    or twice. A reward nobody could compute is no row with 0.0; it goes to
    OUTPUT's _failures.jsonl with the reason, and --retry-failed tries it again.

    \b
    rlbridge rollouts collect --policy http://127.0.0.1:8000 --gym http://127.0.0.1:18080 \
        --input rows.jsonl --output rollouts.jsonl --repeats 8 --concurrency 64
    rlbridge rollouts collect --agent http://127.0.0.1:9000 -i rows.jsonl -o rollouts.jsonl
    rlbridge rollouts collect --policy http://127.0.0.1:8000 --evaluator math \
        -i rows.jsonl -o rollouts.jsonl --temperature 1.0 --ordered

    Exit status: 0 when every rollout has its row, 3 when some failed, 1 when the run stopped,
    130 on Ctrl-C.
    """  # noqa: D301 # click reads the backspace: keep these lines
    import os

    with gateway_extra():
        from rlbridge.cli.tokenizers import load_tokenizer
        from rlbridge.prompts import PromptConfig
        from rlbridge.rollouts.collect import Pace
        from rlbridge.rollouts.config import PlayConfig
        from rlbridge.rollouts.run import CollectRun

    play = PlayConfig.parse(
        {
            "agent": agent,
            "policy": policy,
            "gym": gym,
            "evaluator": evaluator,
            "evaluator_options": _options(evaluator_option or []),
            "model": model,
            "api_key": os.environ.get(api_key_env),
            "tokenizer": tokenizer,
            "agent_name": agent_name,
            "policy_wait_s": policy_wait_s,
            "temperature": temperature,
            "top_p": top_p,
            "max_output_tokens": max_output_tokens,
            "max_turns": max_turns,
        },
        where="rollouts collect",
    )
    pace = Pace(concurrency, attempts, timeout_s=rollout_timeout_s, give_up_after=give_up_after)
    console = _console(as_json)
    run = CollectRun(
        play, load_tokenizer, pace, input_, output, console,
        repeats=repeats, limit=limit, prompt=PromptConfig.load(prompt) if prompt else None,
        retry_failed=retry_failed, ordered=ordered, accept_changes=accept_changes,
        ray=ray, ray_workers=ray_workers,
    )  # fmt: skip
    _finish(_until_stopped(run.execute(), console), as_json)


@app.command()
def rescore(
    rollouts: Annotated[Path, typer.Argument(help="Rollouts, or a _failures.jsonl of them.")],
    output: Output,
    gym: Annotated[
        str | None, typer.Option(help="Base URL of a resources server that judges.")
    ] = None,
    evaluator: Evaluator = None,
    evaluator_option: EvaluatorOptions = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay", help="Make the tool calls again in a session before it is judged."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Ask a server that says it can't judge again.")
    ] = False,
    concurrency: Concurrency = 32,
    timeout_s: Annotated[
        float, typer.Option(help="Longest a verdict may take, seconds.", min=0.001)
    ] = 600.0,
    attempts: Attempts = 3,
    give_up_after: GiveUpAfter = 100,
    retry_failed: RetryFailed = False,
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Sort the rows by task and repeat at the end.")
    ] = False,
    accept_changes: AcceptChanges = False,
    as_json: AsJson = False,
) -> None:
    """Judge rollouts again, without inference; shows which verdicts changed and how.

    The old verdict stays in the row, under _rlbridge_previous_rewards. Stopped and started again,
    it goes on as `collect` does.

    \b
    rlbridge rollouts rescore rollouts.jsonl -o rescored.jsonl --evaluator math
    rlbridge rollouts rescore rollouts_failures.jsonl -o more.jsonl --gym http://127.0.0.1:18080

    Exit status: 0 when every row has a verdict, 3 when some have none, 1 when the run stopped.
    """  # noqa: D301 # click reads the backspace: keep these lines
    with gateway_extra():
        from rlbridge.rollouts.collect import Pace
        from rlbridge.rollouts.rescore_run import Judge, RescoreRun

    judge = Judge(gym, evaluator, _options(evaluator_option or []), replay, force)
    pace = Pace(concurrency, attempts, timeout_s=timeout_s, give_up_after=give_up_after)
    console = _console(as_json)
    run = RescoreRun(
        judge, pace, rollouts, output, console,
        retry_failed=retry_failed, ordered=ordered, accept_changes=accept_changes,
    )  # fmt: skip
    _finish(_until_stopped(run.execute(), console), as_json)


app.command()(rollouts_view.view)


def _finish(summary: dict[str, Any], as_json: bool) -> None:
    """Print the figures if asked, and say by the exit status whether something failed."""
    if as_json:
        typer.echo(json.dumps(summary))
    if summary["failed"]:
        raise typer.Exit(3)


def _until_stopped(run: "Coroutine[Any, Any, dict[str, Any]]", console: "Console") -> Any:
    """Run it; on Ctrl-C or SIGTERM it keeps what is done, and the command ends with 130."""
    import asyncio
    import signal

    async def stoppable() -> Any:
        task = asyncio.ensure_future(run)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        console.print("stopped; what is done is kept, and the same command goes on with it")
        sys.exit(INTERRUPTED)


def _console(as_json: bool) -> "Console":
    """Where progress is shown: away from what `--json` prints."""
    from rich.console import Console

    return Console(stderr=as_json)


def _options(pairs: list[str]) -> dict[str, Any]:
    """Evaluator options from KEY=VALUE; values are read as YAML, as in a config."""
    import yaml

    from rlbridge.errors import ConfigError

    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"--evaluator-option is KEY=VALUE, got {pair!r}")
        options[name] = yaml.safe_load(value)
    return options
