"""Frozen config models. Refuses unknown keys, and names the nearest known one.

Config enters at the top and is handed down in slices: a function gets the model of its own
section, never the tree. Every duration is in seconds and says so in its name.
"""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    transport: Literal["aiohttp", "httpx"] = "aiohttp"
    """HTTP library; httpx brings proxies, HTTP/2 and respx mocks at a higher cost a request."""
    verify_timeout_s: float = Field(60.0, gt=0)
    """Deadline of one attempt at /verify or /seed_session."""
    connect_timeout_s: float = Field(5.0, gt=0)
    """Deadline for opening a connection."""
    total_timeout_s: float = Field(180.0, gt=0)
    """Budget of one call with all its retries and waits."""
    max_attempts: int = Field(4, ge=1)
    """Attempts a call, the first one included."""
    backoff_initial_s: float = Field(0.2, gt=0)
    """First wait between attempts; doubles each time, with jitter."""
    backoff_max_s: float = Field(10.0, gt=0)
    """Longest wait between attempts."""
    max_concurrency: int = Field(256, ge=1)
    """Requests in flight to one server at most."""


def nearest(name: str, known: list[str]) -> str | None:
    """The known key that looks most like `name`, or None when none comes close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return close[0] if close else None


def _explain(model: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] != "extra_forbidden":
        return f"{path}: {item['msg']}"
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
