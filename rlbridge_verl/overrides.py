"""Dotted keys and Hydra's override grammar: what a verl command line is made of."""

from collections.abc import Mapping
from typing import Any

import orjson

from rlbridge.errors import ConfigError
from rlbridge.run_config import flatten


def with_native(keys: dict[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """Put the user's native keys over ours, whichever of the two wrote the `+`."""
    merged = dict(keys)
    for key, value in flatten(native).items():
        bare = key.lstrip("+")
        ours = next((known for known in merged if known.lstrip("+") == bare), None)
        merged[ours or key] = value
    return merged


def override(key: str, value: Any) -> str:
    """One command-line override in Hydra's grammar.

    Raises:
        ConfigError: the value has a type that Hydra has no words for.
    """
    return f"{key}={_hydra(value)}"


def _hydra(value: Any) -> str:
    """A value in Hydra's override grammar; strings are quoted so that they stay strings."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_hydra(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return orjson.dumps(value).decode()
    raise ConfigError(f"verl takes no {type(value).__name__} in an override: {value!r}")


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a tree, for people to read; the marks of added keys are gone."""
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, last = key.lstrip("+").split(".")
        target = tree
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    return tree
