"""Keys of a run config that somebody set and nobody would look at: errors that name them.

Which keys do nothing depends on who makes the rollouts (`agent.loop`), not only on the framework;
what all frameworks have in common is here, and each adapter adds its own. A key that is left at its
default is never refused, nor one that is set to nothing (null, an empty list or mapping).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from rlbridge.errors import ConfigError
from rlbridge.run_config import RunConfig

EVERY_CALL: Final = frozenset({
    "transport", "proxy", "http2", "connect_timeout_s", "queue_timeout_s", "keepalive_s",
    "max_concurrency", "min_concurrency", "breaker_failures", "breaker_probe_s",
    "outage_patience_s", "unknown_params", "max_reply_mb",
})  # fmt: skip
"""Keys of `gym` that every request obeys, `/run` too."""
REWARD_SERVERS: Final = frozenset({
    "serve", "url", "urls", "servers", "headers", "verify_timeout_s", "total_timeout_s",
    "max_attempts", "backoff_initial_s", "backoff_max_s",
})  # fmt: skip
"""Keys of `gym` about servers that `/verify` is asked of; `/run` is sent once, to an agent."""
SHARED_VERDICTS: Final = frozenset(
    {"single_flight", "deterministic", "cache", "cache_path", "cache_entries"}
)
"""Keys of `gym` about verdicts that serve more than one request; none does in a session."""
SESSIONS: Final = frozenset({"tool_timeout_s", "session_cookie"})
"""Keys of `gym` about sessions with tools."""
AGENTS: Final = frozenset({"run_timeout_s"})
"""Keys of `gym` about `/run`."""

OWN_AGENT: Final = ("max_turns", "max_tool_output_chars", "parallel_tool_calls")
"""Keys of `agent` that our own agent obeys, and nobody else."""


def of_run(config: RunConfig) -> dict[str, str]:
    """Keys that do nothing in any run such as this one, each with what to do about it."""
    found = {}
    if config.data.validation is None:
        found["trainer.validate_every"] = "there is nothing to validate on; set data.validation"
    if config.trainer.validate_every is None:
        found["data.validation"] = "nobody validates; set trainer.validate_every, or remove it"
    return found


def of_rollouts(config: RunConfig) -> dict[str, str]:
    """Keys about rollouts and rewards that do nothing with this `agent.loop`, likewise."""
    loop = config.agent.loop
    found = {f"gym.{name}": why for name, why in _of_gym(loop).items()}
    if loop != "run":
        found["agent.servers"] = "only agent.loop=run asks Gym's agents; set that, or remove it"
    if loop != "single_turn" and config.gym.unknown_params == "refuse":
        found["gym.unknown_params"] = (
            "rows are refused before single answers are judged, and nowhere else; set send or drop"
        )
    if config.gym.serve is not None:
        found["gym.url"] = "gym.serve starts a server at a URL of its own; remove one of the two"
    own = {
        "single_turn": "a rollout is one answer here; set agent.loop=tools, or remove it",
        "run": "Gym's agents decide that themselves, by their own config; remove it",
    }
    if loop in own:
        found |= {f"agent.{name}": own[loop] for name in OWN_AGENT}
    if config.algorithm.rollout_correction == "none":
        found["algorithm.correction_threshold"] = (
            "nothing is weighed with algorithm.rollout_correction=none; set token, or remove it"
        )
    return found


def _of_gym(loop: str) -> dict[str, str]:
    if loop == "run":
        judging = REWARD_SERVERS | SHARED_VERDICTS | SESSIONS
        why = "with agent.loop=run an agent's /run gives the reward, and no reward server is asked"
        return dict.fromkeys(judging, f"{why}; remove it")
    why = "only agent.loop=run asks for /run; remove it"
    found = dict.fromkeys(AGENTS, why)
    if loop == "single_turn":
        why = "only agent.loop=tools has sessions; set that, or remove it"
        found |= dict.fromkeys(SESSIONS, why)
    return found


def refuse(config: RunConfig, idle: Mapping[str, str]) -> None:
    """Refuse keys that are set and do nothing.

    Args:
        config: the run.
        idle: why and what instead, by dotted key.

    Raises:
        ConfigError: names every such key; those with one reason together.
    """
    reasons: dict[str, list[str]] = {}
    for key in given_keys(config):
        if key in idle:
            reasons.setdefault(idle[key], []).append(key)
    if reasons:
        raise ConfigError(
            "; ".join(f"{', '.join(keys)}: {reason}" for reason, keys in reasons.items())
        )


def given_keys(config: RunConfig) -> Iterator[str]:
    """Dotted keys that somebody set to something, in the models' order."""
    for name in RunConfig.model_fields:
        section = getattr(config, name)
        if not isinstance(section, BaseModel):
            continue
        for key in type(section).model_fields:
            if key in section.model_fields_set and getattr(section, key) not in _NOTHING:
                yield f"{name}.{key}"


def keys_of(section: str) -> frozenset[str]:
    """Every dotted key of a section of `RunConfig`."""
    model: Any = RunConfig.model_fields[section].annotation
    return frozenset(f"{section}.{key}" for key in model.model_fields)


_NOTHING: Final[tuple[Any, ...]] = (None, (), {})
