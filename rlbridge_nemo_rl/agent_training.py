"""What the driver does otherwise where Gym's agents roll out: NeMo-RL's own Gym path.

As NeMo-RL's `examples/nemo_gym/run_grpo_nemo_gym.py` does it, in its order: the flags behind the
generation config, data without environments, and the number of validation rows last. Refuses rows
that the agents can't take.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError, PluginError
from rlbridge.rows import messages_of, tools_of
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.agent_rewards import ORIGIN
from rlbridge_nemo_rl.agent_servers import AgentServers
from rlbridge_nemo_rl.all_sequences import AllSequences, why_one
from rlbridge_nemo_rl.gym_gateway import GymGateway
from rlbridge_nemo_rl.processor import WHERE
from rlbridge_nemo_rl.training import Training

SHUTDOWN_S = 30.0
"""For Gym's actor to end its servers, each of which may take some seconds."""


def by_agents(config: Any) -> bool:
    """Whether a config's rollouts are made by Gym's agents."""
    return bool(versions.section(config, "env").get("should_use_nemo_gym"))


def gateway_of(
    config: Any, tokenizer: Any, agents: Mapping[str, Any], folder: Path
) -> GymGateway | AgentServers:
    """What stands between the agents and the engines; sets the flags that the path needs.

    Args:
        config: the `MasterConfig`, behind `configure_generation_config`.
        tokenizer: the policy's.
        agents: `servers` and `client` of agents that run already; empty where NeMo-RL starts Gym.
        folder: the run's.

    Raises:
        ConfigError: a flag is wrong, by its name.
    """
    from nemo_rl.environments.nemo_gym import setup_nemo_gym_config

    setup_nemo_gym_config(config, tokenizer)
    ledger, own = folder / "rewards", folder / "gym"
    if not agents:
        return GymGateway.of(config, own, ledger=ledger)
    return AgentServers.of(config, own, agents["servers"], client=agents["client"], ledger=ledger)


def sequences_of(config: Any, run: Training) -> AllSequences | None:
    """What trains all of a rollout's sequences; None, with a warning, where NeMo-RL can't."""
    why = why_one(config)
    if why:
        run.warn(f"only one sequence of a rollout is trained: {why}")
        return None
    sequences = AllSequences(config)
    if sequences.caveat:
        run.warn(sequences.caveat)
    return sequences


def data_of(config: Any, tokenizer: Any, *, one_agent: bool) -> tuple[Any, Any]:
    """The rows to train and to validate on; all validation rows are one batch.

    Args:
        config: the `MasterConfig`.
        tokenizer: the policy's.
        one_agent: whether the same agent plays every row.

    Raises:
        ConfigError: a prompt is longer than data.max_prompt_tokens, or `one_agent` and rows name
            several; with file and line.
    """
    from nemo_rl.data.utils import setup_response_data

    section = versions.section(config, "data")
    dataset, val_dataset = setup_response_data(tokenizer, section, env_configs=None)
    rows = [
        made[index]["extra_env_info"]
        for made in (dataset, val_dataset)
        for index in range(len(made) if made is not None else 0)
    ]
    if one_agent:
        _refuse_other_agents(rows)
    _refuse_overlong(rows, tokenizer, int(versions.value(section, "max_input_seq_length")))
    if val_dataset is not None:
        grpo = versions.section(config, "grpo")
        for name in ("max_val_samples", "val_batch_size"):
            if isinstance(grpo, dict):
                grpo[name] = len(val_dataset)
            else:
                setattr(grpo, name, len(val_dataset))
    return dataset, val_dataset


def environments_of(actor: Any) -> dict[str, Any]:
    """Gym's actor under the name by which NeMo-RL's rollout looks for it.

    Raises:
        PluginError: `setup` made none.
    """
    if actor is None:
        raise PluginError("NeMo-RL's grpo.setup made no Gym actor; is this NeMo-RL older than 0.7?")
    return {"nemo_gym": actor}


@contextlib.contextmanager
def served(gateway: GymGateway | AgentServers, made: versions.Parts, step: int) -> Iterator[None]:
    """Open around async training: agents may ask the engines all the while.

    Args:
        gateway: serves the engines, which don't sleep.
        made: by `setup`.
        step: the last that was trained; NeMo-RL's version of the weights.

    Raises:
        RunError: an engine has no URL, or the gateway isn't ready in time.
    """
    generation = made.policy_generation
    with gateway.serving(lambda: generation.dp_openai_server_base_urls, weights=step):
        yield


@contextlib.contextmanager
def ending(actor: Any) -> Iterator[None]:
    """End what Gym's actor started, whatever the way out; NeMo-RL's synchronous loop doesn't.

    Args:
        actor: None where there is none.
    """
    import ray

    try:
        yield
    finally:
        if actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(actor.shutdown.remote(), timeout=SHUTDOWN_S)


def _refuse_other_agents(rows: list[dict[str, Any]]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row[wire.AGENT_REF]["name"], _where(row))
    if len(first) > 1:
        named = ", ".join(f"{name} ({where})" for name, where in list(first.items())[:3])
        raise ConfigError(
            f"agent.servers: rows name {len(first)} agents: {named}; the servers are one agent, "
            "which gets every row. Split the rows into runs, or let NeMo-RL start Gym "
            "(nemo_rl.env.nemo_gym.config_paths), which sends a row to the agent it names"
        )


def _refuse_overlong(rows: list[dict[str, Any]], tokenizer: Any, limit: int) -> None:
    found = [_where(row) for row in rows if _length(row, tokenizer) > limit]
    if found:
        raise ConfigError(
            f"data: {len(found)} of {len(rows)} prompts are longer than data.max_prompt_tokens, "
            f"the first at {found[0]}; raise it or drop these rows"
        )


def _length(row: Mapping[str, Any], tokenizer: Any) -> int:
    """Tokens of a row's prompt as the policy's template renders it; an agent may add to it."""
    text = tokenizer.apply_chat_template(
        messages_of(row, _where(row)),
        tools=tools_of(row) or None,
        tokenize=False,
        add_generation_prompt=True,
    )
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def _where(row: Mapping[str, Any]) -> str:
    """File and line; a dataset of others' doesn't tell."""
    return str((row.get(ORIGIN) or {}).get(WHERE, "a row"))
