"""Where NeMo-RL 0.6, 0.7 and its development head differ. Refuses versions it doesn't know.

Features are asked for, not version numbers: the head calls itself 0.6.
"""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from rlbridge.errors import ConfigError, PluginError


class Parts(NamedTuple):
    """What `nemo_rl.algorithms.grpo.setup` makes, by name."""

    policy: Any
    policy_generation: Any
    dataloader: Any
    val_dataloader: Any
    loss_fn: Any
    logger: Any
    checkpointer: Any
    save_state: Any
    master_config: Any
    nemo_gym: Any = None
    extras: Mapping[str, Any] = {}  # of teachers; only async_grpo_train takes them


def checkout() -> Path:
    """The clone that `nemo_rl` is imported from; its examples are not part of the package."""
    package = importlib.import_module("nemo_rl")
    return Path(str(package.__file__)).resolve().parents[1]


def parts(made: tuple[Any, ...]) -> Parts:
    """Name what `setup` returned: 10 values in 0.6, 13 from 0.7 on.

    Raises:
        PluginError: another number of values.
    """
    if len(made) == 13:
        policy, generation, nemo_gym, _, *rest, teachers, aliases = made
        extras = {"teacher_worker_groups": teachers, "alias_to_group_alias": aliases}
        return Parts._make((policy, generation, *rest, nemo_gym, extras))
    if len(made) == 10:
        policy, generation, _, *rest = made
        return Parts._make((policy, generation, *rest, None, {}))
    raise PluginError(
        f"this NeMo-RL's grpo.setup returns {len(made)} values; rlbridge knows 0.6 (10) and 0.7 "
        "(13): use one of those, or keep your launcher and call rlbridge_nemo_rl.register()"
    )


def known(function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that this version's function takes."""
    return {
        name: value
        for name, value in arguments.items()
        if name in inspect.signature(function).parameters
    }


def section(config: Any, name: str) -> Any:
    """A section of a master config: an attribute from 0.7 on, a key before."""
    return config[name] if isinstance(config, Mapping) else getattr(config, name)


def value(section_: Any, name: str, default: Any = None) -> Any:
    """A key of a section: a mapping up to 0.7, a model in the head."""
    if isinstance(section_, Mapping):
        return section_.get(name, default)
    return getattr(section_, name, default)


def check() -> None:
    """See that this NeMo-RL can be launched.

    Raises:
        PluginError: it can't; says what can be done.
    """
    if not hasattr(importlib.import_module("nemo_rl.data.utils"), "setup_response_data"):
        raise PluginError(
            "this NeMo-RL is older than 0.6, and its data are set up by its example scripts; "
            "update it, or keep your launcher and call rlbridge_nemo_rl.register()"
        )


def validated(algorithm: str, container: dict[str, Any]) -> Any:
    """The installed `MasterConfig` of an algorithm, made of plain data.

    Args:
        algorithm: "grpo", "sft" or "dpo".
        container: the whole config, interpolations resolved.

    Raises:
        ConfigError: with every mistake by its path.
    """
    model = importlib.import_module(f"nemo_rl.algorithms.{algorithm}").MasterConfig
    try:
        if isinstance(model, type) and issubclass(model, BaseModel):
            return model(**container)
        TypeAdapter(model).validate_python(container)
    except ValidationError as error:
        lines = [_line(item) for item in error.errors(include_url=False)]
        raise ConfigError("NeMo-RL refuses this config: " + "; ".join(lines)) from error
    return container


def _line(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "(top level)"
    return f"{path}: {item['msg']}"
