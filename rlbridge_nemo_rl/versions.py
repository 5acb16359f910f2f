"""Where NeMo-RL 0.6, 0.7 and its development head differ. Refuses versions it doesn't know.

Features are asked for, not version numbers: the head of August 2026 calls itself 0.6. Imports
nothing but pydantic and our errors, for it is used in NeMo-RL's environment for Gym too.
"""

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from rlbridge.errors import ConfigError, PluginError

KNOWN = "NeMo-RL 0.6, 0.7 and the development head of August 2026"
_CLONE = "run inside a clone of https://github.com/NVIDIA-NeMo/RL (see docs/nemo_rl.md)"
_GRPO = "nemo_rl.algorithms.grpo"
_ROLLOUTS = ("run_multi_turn_rollout", "run_async_multi_turn_rollout")
# Of Gym's agents: up to 0.7, and in the head, where the first one streams and this waits for it.
_GYM_ROLLOUTS = ("run_async_nemo_gym_rollout", "run_nemo_gym_rollout_sync")
_UNMASKED = "a missing reward could not be kept out of the loss and of baselines"
_ESTIMATOR = "_create_advantage_estimator"


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
    raise _unknown(
        f"returns {len(made)} values from {_GRPO}.setup, not 10 (0.6) or 13; keep your own "
        "launcher and call rlbridge_nemo_rl.register()"
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
    """See that this NeMo-RL has what rlbridge needs of it, where it needs it.

    A function that its training loop doesn't call would be replaced in vain, and a missing reward
    trained on.

    Raises:
        PluginError: it hasn't; says what can be done.
    """
    if importlib.util.find_spec("nemo_rl") is None:
        raise PluginError(f"nemo_rl isn't importable here; {_CLONE}")
    if importlib.util.find_spec("nemo_rl.algorithms") is None:
        raise PluginError(
            f"the nemo_rl at {checkout() / 'nemo_rl'} is not NeMo-RL but PyPI's empty placeholder: "
            f"uninstall nemo-rl, and {_CLONE}"
        )
    data = "nemo_rl.data.utils"
    found = importlib.util.find_spec(data) and importlib.import_module(data)
    if not hasattr(found, "setup_response_data"):
        raise _unknown(f"has no {data}.setup_response_data: a config can't name our dataset there")
    for name in (*rollouts(), _ESTIMATOR):
        if not _called(name):
            raise _unknown(f"has no {_GRPO}.{name} that grpo_train calls: {_UNMASKED}")
    gym_rollout()


def _called(name: str) -> bool:
    """Whether NeMo-RL's GRPO loop calls a function of its module by this name."""
    module = importlib.import_module(_GRPO)
    return hasattr(module, name) and name in inspect.unwrap(module.grpo_train).__code__.co_names


def _unknown(what: str) -> PluginError:
    version = getattr(importlib.import_module("nemo_rl"), "__version__", "of unknown version")
    return PluginError(
        f"NeMo-RL {version} at {checkout()} {what}; rlbridge works with {KNOWN}: "
        "try `git checkout v0.7.0` there, or another rlbridge"
    )


def rollouts() -> tuple[str, ...]:
    """Functions of `nemo_rl.algorithms.grpo` that NeMo-RL's own rollouts pass through."""
    return _ROLLOUTS


def gym_rollout() -> str:
    """The function of `nemo_rl.algorithms.grpo` that rollouts of Gym's agents pass through.

    Raises:
        PluginError: there is none.
    """
    for name in _GYM_ROLLOUTS:
        if _called(name):
            return name
    raise _unknown(f"has no {_GRPO}.{_GYM_ROLLOUTS[0]} that grpo_train calls: {_UNMASKED}")


@contextlib.contextmanager
def finishing(checkpointer: Any) -> Iterator[None]:
    """At the end, whatever it is, let the head's checkpointer finish what it writes aside."""
    try:
        yield
    finally:
        if hasattr(checkpointer, "shutdown"):
            checkpointer.shutdown()


def name_dataset(dotted: str) -> None:
    """Let a config name a dataset class by its dotted path, as 0.7 and the head do by themselves.

    In 0.6 a name is looked for in a registry and nowhere else.
    """
    home, _, name = dotted.rpartition(".")
    for kind in ("response", "preference"):
        module = importlib.import_module(f"nemo_rl.data.datasets.{kind}_datasets")
        if home and not hasattr(module, "resolve_external_dataset_class"):
            module.DATASET_REGISTRY[dotted] = getattr(importlib.import_module(home), name)


def hands_over_async_mask() -> bool:
    """Whether the async loop gives the loss's mask to the estimator, as it does from 0.7 on."""
    grpo = importlib.import_module("nemo_rl.algorithms.grpo")
    return "sample_mask=" in inspect.getsource(grpo.async_grpo_train)


def logprobs_configurable() -> bool:
    """Whether `vllm_cfg.logprobs_mode` is heeded, as in the head; elsewhere it is ignored."""
    if importlib.util.find_spec("nemo_rl") is None:
        return False
    module = importlib.import_module("nemo_rl.models.generation.vllm.config")
    return "logprobs_mode" in module.VllmSpecificArgs.__annotations__


def gym_actor_modules() -> list[Any]:
    """Modules by whose name `NemoGym` launchers make Gym's actor.

    0.7 does so in `grpo.setup`, 0.6 by its registry of environments, the head beside the class.
    """
    modules = [importlib.import_module("nemo_rl.environments.nemo_gym")]
    grpo = importlib.import_module("nemo_rl.algorithms.grpo")
    return [*modules, grpo] if hasattr(grpo, "NemoGym") else modules


def postprocessed(actor: Any, row: Any, result: Any, tokenizer: Any) -> dict[str, Any]:
    """A Gym actor's own reading of a result; the head wants its row too."""
    method = actor._postprocess_nemo_gym_to_nemo_rl_result
    given = {"nemo_gym_row": row, "nemo_gym_result": result, "tokenizer": tokenizer}
    read: dict[str, Any] = method(**known(method, given))
    return read


def streams(method: Any) -> bool:
    """Whether an actor's method gives its results one by one, as the head's `run_rollouts`."""
    return inspect.isasyncgenfunction(inspect.unwrap(method))


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
