"""Frozen config models. Refuses unknown keys, and names the nearest known one.

Config enters at the top and is handed down in slices: a function gets the model of its own
section, never the tree. Every duration is in seconds and says so in its name.
"""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from rlbridge.errors import ConfigError


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, where: str = "config") -> Self:
        """Validate `data`, or raise a `ConfigError` that lists every mistake by its path.

        Args:
            data: plain data, as YAML or JSON gives it.
            where: what to call the source in messages (a file's name, say).
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [_explain(cls, item) for item in error.errors(include_url=False)]
            raise ConfigError(f"{where}: " + "; ".join(lines)) from error


class GymConfig(StrictModel):
    """How to reach the reward servers and how long to wait for them."""

    url: str = "http://127.0.0.1:18080"
    """Base URL of the resources server, without /verify."""
    urls: tuple[str, ...] = ()
    """Further base URLs of the same server; calls go to the one with the fewest outstanding."""
    transport: Literal["aiohttp", "httpx"] = "aiohttp"
    """HTTP library; httpx brings HTTP/2 and respx mocks at a higher cost a request."""
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Sent with every request (authentication, say); never logged, never shown."""
    proxy: str | None = None
    """Proxy URL for all requests."""
    http2: bool = False
    """HTTP/2, over https only; needs `transport: httpx` and the extra rlbridge[http2]."""

    verify_timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one attempt at /verify, /seed_session or /aggregate_metrics."""
    tool_timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one tool call."""
    run_timeout_s: float = Field(default=1800.0, gt=0)
    """Deadline of an agent's /run: a whole rollout, model calls included."""
    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Deadline for opening a connection."""
    total_timeout_s: float = Field(default=180.0, gt=0)
    """Budget of one call with all its attempts and the waits between them, our queue excepted."""
    queue_timeout_s: float = Field(default=1800.0, gt=0)
    """Longest wait in our own queue for one of the server's slots."""
    keepalive_s: float = Field(default=4.0, gt=0)
    """Idle connections are closed after this; keep it below the server's (uvicorn: 5 s)."""

    max_attempts: int = Field(default=4, ge=1)
    """Attempts a call, the first one included."""
    backoff_initial_s: float = Field(default=0.2, gt=0)
    """First wait between attempts; doubles each time, with jitter."""
    backoff_max_s: float = Field(default=10.0, gt=0)
    """Longest wait between attempts, unless the server asks for more (Retry-After)."""
    max_concurrency: int = Field(default=256, ge=1)
    """Requests in flight to one server at most; less while it answers 429 or too late."""
    min_concurrency: int = Field(default=1, ge=1)
    """The adaptive limit never goes below this."""
    breaker_failures: int = Field(default=10, ge=1)
    """Failures in a row after which a server counts as down."""
    breaker_probe_s: float = Field(default=0.5, gt=0)
    """Wait before the first probe of a server that is down; doubles up to 2 s."""
    outage_patience_s: float = Field(default=20.0, ge=0)
    """How long calls wait for a server that went down; afterwards they fail at once."""

    single_flight: bool = True
    """Equal verifies that are in flight together share one request."""
    deterministic: bool = True
    """False for servers whose verdict varies (a sampling judge): nothing is shared or cached."""
    cache: Literal["off", "memory", "sqlite"] = "off"
    """Keep valid rewards by (server, task, visible response)."""
    cache_path: str | None = None
    """File of the SQLite cache."""
    cache_entries: int = Field(default=100_000, ge=1)
    """Entries kept; the least recently used (memory) or oldest (SQLite) go first."""

    unknown_params: Literal["send", "refuse", "drop"] = "send"
    """Keys of responses_create_params that Gym doesn't know: let the server decide (NeMo Gym
    answers 422), refuse the row here, or leave them out."""
    session_cookie: Literal["required", "optional"] = "required"
    """Whether a session without a confirmed session cookie counts as lost."""
    max_reply_mb: float = Field(default=32.0, gt=0)
    """A longer reply is refused as malformed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cache == "sqlite" and not self.cache_path:
            raise ValueError("cache: sqlite needs cache_path, the file to keep rewards in")
        if self.http2 and self.transport != "httpx":
            raise ValueError("http2 needs transport: httpx (aiohttp speaks HTTP/1.1 only)")
        if self.min_concurrency > self.max_concurrency:
            raise ValueError("min_concurrency is above max_concurrency")
        for url in (self.url, *self.urls):
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"a Gym URL starts with http:// or https://, got {url!r}")
        return self


def nearest(name: str, known: list[str]) -> str | None:
    """The known key that looks most like `name`, or None when none comes close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


def _explain(model: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "model_type":
        return f"{path}: must be a mapping of keys: {', '.join(_fields_at(model, item['loc']))}"
    if item["type"] != "extra_forbidden":
        message = item["msg"].removeprefix("Value error, ")
        return f"{path}: {message}" if path else message
    known = _fields_at(model, item["loc"][:-1])
    guess = nearest(str(item["loc"][-1]), known)
    hint = f"did you mean {guess!r}?" if guess else "known keys: " + ", ".join(sorted(known))
    return f"{path}: unknown key; {hint}"


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that sits at `loc`; empty where there is none."""
    current: Any = model
    for part in loc:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = _model_in(field.annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The model class inside `Model | None`, or the annotation itself."""
    for argument in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return annotation
