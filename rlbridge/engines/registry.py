"""The entry in which a trainer publishes its engines and a gateway finds them.

Either a file, written whole or not at all, or a named Ray actor. Nothing is guessed: whoever
publishes and whoever reads name the same file or actor.
"""

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rlbridge.config import StrictModel
from rlbridge.engines.config import RayEntry
from rlbridge.errors import ConfigError, EngineError

_RAY_TIMEOUT_S = 30.0


class RegistryEntry(StrictModel):
    """What a trainer tells of its engines."""

    urls: tuple[str | None, ...]
    """Base URLs of the replicas; null for one that isn't up yet."""
    model: str | None = None
    """The model's name in requests."""
    policy_version: int | str | None = None
    """The weights that every replica is to serve now."""
    time_s: float = Field(default_factory=time.time)
    """When this was published, Unix time."""


def publish(path: Path, entry: RegistryEntry) -> None:
    """Write an entry to a file; a reader finds the old entry or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(entry.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> RegistryEntry | None:
    """The entry in a file; None while nobody has published one.

    Raises:
        ConfigError: the file is no entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is no registry entry: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is no registry entry: it holds no object")
    return RegistryEntry.parse(data, where=str(path))


def publish_ray(where: RayEntry, entry: RegistryEntry) -> None:
    """Keep an entry in the named actor, which is made where it isn't there; it outlives its maker.

    Raises:
        EngineError: Ray didn't answer.
    """
    with _ray_errors(where) as ray:
        actor = _actor(ray, where)
        if actor is None:
            maker = ray.remote(_Keeper).options(
                name=where.name,
                namespace=where.namespace,
                lifetime="detached",
                num_cpus=0,
                get_if_exists=True,
            )
            actor = maker.remote()
        ray.get(actor.put.remote(entry.model_dump_json()), timeout=_RAY_TIMEOUT_S)


def read_ray(where: RayEntry) -> RegistryEntry | None:
    """The entry in the named actor; None while there is none.

    Raises:
        EngineError: Ray didn't answer.
        ConfigError: the actor keeps no entry.
    """
    with _ray_errors(where) as ray:
        actor = _actor(ray, where)
        text = None if actor is None else ray.get(actor.get.remote(), timeout=_RAY_TIMEOUT_S)
    if text is None:
        return None
    return RegistryEntry.parse(json.loads(text), where=f"Ray actor {where.name}")


async def watch(
    reader: Callable[[], Awaitable[RegistryEntry | None]], *, interval_s: float
) -> AsyncIterator[RegistryEntry]:
    """Every entry that differs from the last one, as it is found.

    Args:
        reader: reads the entry (`read` or `read_ray`, in a thread).
        interval_s: between two reads.
    """
    last = None
    while True:
        entry = await reader()
        if entry is not None and entry != last:
            last = entry
            yield entry
        await asyncio.sleep(interval_s)


def without_nulls(urls: Sequence[str | None]) -> tuple[str, ...]:
    """The URLs that are there, each once, in order."""
    return tuple(dict.fromkeys(url for url in urls if url))


class _Keeper:
    """The actor: keeps one text."""

    def __init__(self) -> None:
        self._text: str | None = None

    def put(self, text: str) -> None:
        self._text = text

    def get(self) -> str | None:
        return self._text


@contextlib.contextmanager
def _ray_errors(where: RayEntry) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("policy.ray needs Ray: install it, or use policy.file") from error
    try:
        if not ray.is_initialized():
            ray.init(address=where.address, log_to_driver=False)
        yield ray
    except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
        raise EngineError(
            f"Ray actor {where.name} in {where.namespace}: {error}", retryable=True
        ) from error


def _actor(ray: Any, where: RayEntry) -> Any:
    try:
        return ray.get_actor(where.name, namespace=where.namespace)
    except ValueError:  # Ray's way to say that there is none
        return None
