"""Where a policy's engines are and how to speak to them. Refuses more than one source."""

import math
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from rlbridge.config import StrictModel
from rlbridge.contracts.tokens import LogprobsMode

WireName = Literal["auto", "token_chat", "generate", "completions", "nemo_rl", "text"]
_SOURCES = ("url", "urls", "ray", "gym_head", "file")


class RayEntry(StrictModel):
    """A registry entry kept by a named Ray actor; see `rlbridge.engines.registry`."""

    name: str
    """Name of the actor."""
    namespace: str = "rlbridge"
    """Its Ray namespace."""
    address: str = "auto"
    """Address of the Ray cluster, where this process isn't connected to one yet."""


class PolicyConfig(StrictModel):
    """A policy: exactly one source of its engines' URLs, and how they are spoken to."""

    url: str | None = None
    """Base URL of the one engine, with or without /v1."""
    urls: tuple[str | None, ...] = ()
    """Base URLs of replicas that serve the same policy; null for one that isn't up, which is left
    out with a warning."""
    ray: RayEntry | None = None
    """A Ray actor that the trainer keeps the URLs in; watched."""
    gym_head: str | None = None
    """URL of a NeMo Gym head server, whose config names the policy (`policy_base_url`)."""
    file: Path | None = None
    """A file that the trainer publishes the URLs in; watched."""

    model: str | None = None
    """Name of the model in requests; asked of the engine where it tells (NeMo-RL's doesn't)."""
    api_key: SecretStr | None = None
    """Sent as a bearer token; never logged, never shown."""
    wire: WireName = "auto"
    """How to speak to the engines; `auto` finds the best way that gives exact tokens."""
    temperature: float | None = Field(default=None, ge=0)
    """The only temperature that the trainer allows; NeMo-RL's server insists on it (1.0 there
    unless given)."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """The only top_p that the trainer allows; likewise."""
    logprobs_mode: LogprobsMode | None = None
    """What the engine's logprobs are of; found out by asking where this is empty."""

    ready_timeout_s: float = Field(default=600.0, gt=0)
    """One deadline for finding the engines and for the first to come up."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Deadline for opening a connection."""
    call_timeout_s: float = Field(default=1800.0, gt=0)
    """Deadline of one call with all its attempts."""
    keepalive_s: float = Field(default=4.0, gt=0, lt=5)
    """Idle connections are closed after this; vLLM closes them after 5 s."""
    max_attempts: int = Field(default=4, ge=1)
    """Attempts a call, on whichever replicas."""
    backoff_initial_s: float = Field(default=0.2, gt=0)
    """First wait before the same replica is asked again; doubles, with jitter."""
    backoff_max_s: float = Field(default=5.0, gt=0)
    """Longest such wait."""
    patience_s: float = Field(default=120.0, ge=0)
    """How long a call waits while no replica is well and at the current weights."""
    health_interval_s: float = Field(default=2.0, gt=0)
    """Between two looks at a replica's health and weights, and at a watched source."""
    health_timeout_s: float = Field(default=5.0, gt=0)
    """Deadline of one such look."""
    salt_by_version: bool = True
    """Prefixes cached under other weights are never hit; false leaves caches to the trainer."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in _SOURCES if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"a policy has exactly one of {', '.join(_SOURCES)}; "
                + (f"got {' and '.join(given)}" if given else "got none")
            )
        for url in (self.url, self.gym_head, *self.urls):
            if url is not None:
                check_url(url)
        if self.wire == "nemo_rl" and self.model is None and (self.url or self.urls):
            raise ValueError("wire: nemo_rl needs model: its server doesn't tell the name")
        if not math.isfinite(self.ready_timeout_s + self.call_timeout_s):
            raise ValueError("every deadline is finite")
        return self


def check_url(url: str) -> str:
    """The base URL of an engine, without `/v1` at its end.

    Raises:
        ValueError: not http(s), or with credentials or a query in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an engine's URL starts with http:// or https:// and a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an engine's URL holds no credentials and no query; use api_key")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
