"""What a run was asked to do, kept beside its output. Refuses to go on with something else.

Rows of two different runs in one file look alike and train alike, so a second command with the
same output must ask for the same thing, or say that the change is meant.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.rollouts.appending import write_whole

_VERSION = 1


def begin_or_resume(path: Path, asked: Mapping[str, Any], *, accept_changes: bool) -> None:
    """Record what is asked, or check that it is what was asked before.

    Args:
        path: the record's file.
        asked: option to JSON value; what decides which rows come out and nothing else.
        accept_changes: record the new options instead of refusing them.

    Raises:
        ConfigError: something else was asked before; says what differs.
    """
    before = _options(path)
    changes = [] if before is None else _changes(before, asked)
    if changes and not accept_changes:
        raise ConfigError(
            f"{path.name} says that this output was begun with other options: "
            + "; ".join(changes)
            + ". Run the earlier command to go on with it, choose another --output, or add "
            "--accept-changes if rows of both belong into one file"
        )
    if before is None or changes:
        document = {"version": _VERSION, "options": dict(asked)}
        write_whole(path, orjson.dumps(document, option=orjson.OPT_INDENT_2))


def _options(path: Path) -> dict[str, Any] | None:
    try:
        document = orjson.loads(path.read_bytes())
        return dict(document["options"])
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no record of a run ({error}); move it away") from error


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The options that differ, each in a few words."""
    return [
        f"{name} was {_shown(before.get(name))} and is {_shown(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode() if value is not None else "not given"
    return text if len(text) <= 80 else text[:77] + "..."
