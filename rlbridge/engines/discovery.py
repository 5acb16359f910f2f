"""Where a policy's engines are, by the one source its config names. Guesses nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from rlbridge.config import GymConfig
from rlbridge.contracts.wire import ROUTE_GLOBAL_CONFIG
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.registry import RegistryEntry, read, read_ray
from rlbridge.errors import ConfigError, EngineError, GymError
from rlbridge.gym.client import GymClient
from rlbridge.gym.discovery import read_global_config


@dataclass(frozen=True, slots=True)
class Found:
    """What a source gave.

    Attributes:
        entry: the engines.
        api_key: the key for them, where the source keeps one.
    """

    entry: RegistryEntry
    api_key: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A source of engines.

    Attributes:
        name: for people.
        read: gives the engines; None while nobody has published any.
        watched: whether it is read again and again.
        fixed: whether reading again can't give anything else.
    """

    name: str
    read: Callable[[], Awaitable[Found | None]]
    watched: bool = False
    fixed: bool = False


def source_of(config: PolicyConfig) -> Source:
    """The source that a config names."""
    if config.ray is not None:
        where = config.ray
        return Source(
            f"Ray actor {where.name}", _reader(lambda: read_ray(where)), watched=True
        )  # fmt: skip
    if config.file is not None:
        path = config.file
        return Source(str(path), _reader(lambda: read(path)), watched=True)
    if config.gym_head is not None:
        head = config.gym_head
        return Source(head, lambda: _from_head(head, config.health_timeout_s))
    urls = config.urls or (config.url,)

    async def given() -> Found:
        return Found(RegistryEntry(urls=urls, model=config.model))

    return Source("policy.urls", given, fixed=True)


def _reader(call: Callable[[], RegistryEntry | None]) -> Callable[[], Awaitable[Found | None]]:
    async def found() -> Found | None:
        entry = await asyncio.to_thread(call)
        return None if entry is None else Found(entry)

    return found


async def _from_head(url: str, timeout_s: float) -> Found | None:
    """The policy in a NeMo Gym head server's global config; None while it has no URL."""
    try:
        # The pool asks again and again; the client needn't wait for a server that is down.
        asked = GymConfig(url=url, max_attempts=1, outage_patience_s=0, total_timeout_s=timeout_s)
        async with GymClient(asked) as head:
            config = await head.get_json(ROUTE_GLOBAL_CONFIG, read_global_config)
    except GymError as error:
        raise EngineError(f"the Gym head server: {error}", retryable=True, url=url) from error
    return policy_in(config, url)


def policy_in(config: Mapping[str, Any], url: str) -> Found | None:
    """`policy_base_url`, `policy_model_name` and `policy_api_key` of a Gym config.

    Raises:
        ConfigError: it names no policy.
    """
    if "policy_base_url" not in config:
        raise ConfigError(f"the Gym config at {url} has no policy_base_url; set it, or name url")
    given = config["policy_base_url"]
    urls = tuple(given) if isinstance(given, list | tuple) else (given,)
    model, key = config.get("policy_model_name"), config.get("policy_api_key")
    entry = RegistryEntry(urls=urls, model=str(model) if model else None)
    return Found(entry, SecretStr(str(key)) if key else None)
