"""`rlbridge transform check`: are trained tokens those that were sampled?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlbridge.cli.rollout_options import (
    AsJson,
    Inputs,
    MaxBad,
    ReasoningOption,
    SftFormat,
    check_inputs,
    progress_bar,
    share,
)

if TYPE_CHECKING:
    from rlbridge.rollouts.parity import Parity


def check(
    inputs: Inputs,
    model: Annotated[str, typer.Option(help="The model whose template and tokenizer train.")],
    format: Annotated[  # noqa: A002 # the option's name
        SftFormat, typer.Option(help="The form of the converted rows, as of `transform sft`.")
    ] = SftFormat.OPENAI,
    reasoning: ReasoningOption = None,
    budget: Annotated[
        str, typer.Option(help="Exit with status 1 if more rows differ: 0.5%, or 0.005.")
    ] = "100%",
    max_bad: MaxBad = "1%",
    as_json: AsJson = False,
) -> None:
    """Compare what a trainer will make of each converted row with what was sampled.

    \b
    rlbridge transform check rollouts.jsonl --model Qwen/Qwen3-8B --budget 0.5%
    """  # noqa: D301 # click reads the backspace: keep these lines
    from rlbridge.cli.tokenizers import load_tokenizer, style_for, turn_ends
    from rlbridge.rollouts.parity import compare
    from rlbridge.transforms import sft as transform_sft
    from rlbridge.transforms.reading import Reader
    from rlbridge.transforms.rejects import Rejects
    from rlbridge.transforms.selection import Selection

    allowed = share(budget, "--budget")
    check_inputs(inputs)
    tokenizer = load_tokenizer(model)
    style = style_for(model, reasoning)
    job = transform_sft.job((), Path("none.jsonl"), Selection(), format=format.value, style=style)
    rejects = Rejects(allowed_share=share(max_bad, "--max-bad"))
    total = sum(path.stat().st_size for path in inputs)
    with progress_bar(total, "comparing", quiet=as_json) as advance:
        reader = Reader(inputs, rejects=rejects, progress=advance)
        found = compare(reader, job.convert, tokenizer, ends=turn_ends(model, tokenizer))
    _print_parity(found, tokenizer, as_json)
    if found.share > allowed:
        typer.echo(f"{found.share:.2%} of the rows differ; the budget is {budget}", err=True)
        raise typer.Exit(1)


def _print_parity(found: "Parity", tokenizer: Any, as_json: bool) -> None:
    from rlbridge.onpolicy.survey import picture

    if as_json:
        names = ("rows", "equal", "sampled", "prompt", "untold", "skipped")
        document = {name: getattr(found, name) for name in names} | {"share": found.share}
        typer.echo(json.dumps(document))
        return
    typer.echo(f"compared {found.rows:,} rows: {found.equal:,} train on exactly what was sampled")
    for where, kinds in (("sampled tokens", found.sampled), ("the prompt", found.prompt)):
        for kind, count in kinds.most_common():
            typer.echo(f"differ   {count:,} in {where}: {kind}")
    if found.untold:
        typer.echo(f"no say   {found.untold:,} rows without (sound) token fields")
    if found.skipped:
        typer.echo(f"left out {found.skipped:,} rows that don't convert")
    if found.first is not None:
        typer.echo("\n" + picture(found.first, tokenizer))
