"""Write the references in docs/reference/ from the code: `python -m tools.docs [--check]`.

The CLI's comes from its help, the config's from the models' fields and their docstrings, the
hooks' from the specs. With `--check` nothing is written and the exit status says whether they
are current.
"""

import inspect
import sys
import typing
from pathlib import Path

import typer.main
from pydantic import BaseModel
from typer.cli import get_docs_for_click

from rlbridge import hookspecs
from rlbridge.cli.main import app
from rlbridge.run_config import RunConfig

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code; change the code, not this file. -->\n\n"


def cli() -> str:
    """Every command with its help and options."""
    command = typer.main.get_command(app)
    context = command.make_context("rlbridge", [], resilient_parsing=True)
    return get_docs_for_click(obj=command, ctx=context, name="rlbridge", title="Command line")


def config() -> str:
    """Every key of a run's config with its type, default and meaning."""
    parts = ["# Run config\n", inspect.cleandoc(RunConfig.__doc__ or ""), ""]
    parts += ["A YAML file with these sections; `rlbridge run` also takes `section.key=value`.", ""]
    for name, field in RunConfig.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            parts += [f"## `{name}`\n", f"{field.description}\n", *_table(model), ""]
        else:
            parts += [f"## `{name}`\n", f"{field.description}\n"]
    return "\n".join(parts)


def _table(model: type[BaseModel]) -> list[str]:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        default = (
            "required"
            if field.is_required()
            else f"`{field.get_default(call_default_factory=True)}`"
        )
        kind = _type(field.annotation).replace("|", "\\|")
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{name}` | {kind} | {default} | {meaning} |")
    return rows


def _type(annotation: object) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def hooks() -> str:
    """The plugin contract, as it stands in the code."""
    source = Path(inspect.getfile(hookspecs)).read_text(encoding="utf-8")
    intro = inspect.cleandoc(hookspecs.__doc__ or "")
    body = source.split('"""', 2)[2].strip()
    return f"# Plugin hooks\n\n{intro}\n\n```python\n{body}\n```\n"


def pages() -> dict[Path, str]:
    """Every generated page with its text."""
    made = {"cli.md": cli(), "config.md": config(), "hooks.md": hooks()}
    return {FOLDER / name: NOTE + text.rstrip() + "\n" for name, text in made.items()}


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` tell which are stale."""
    stale = [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in arguments:
        for path in stale:
            print(f"stale: {path.name}; run `make docs`")
        return bool(stale)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
