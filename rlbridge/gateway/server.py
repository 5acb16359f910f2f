"""A gateway as a server: its config, and everything opened that it is made of.

The config is the core's with the surroundings added: the policy's engines, the Gym, who may ask
and from where. Refuses to listen beyond loopback without a token.
"""

import gc
import importlib.util
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator
from starlette.middleware import Middleware

from rlbridge.config import GymConfig, StrictModel
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import EngineInfo
from rlbridge.engines.open import open_engine
from rlbridge.engines.pool import ReplicaPool
from rlbridge.errors import ConfigError
from rlbridge.gateway.access import Access, is_loopback, read_or_make_token
from rlbridge.gateway.agent import Agent, AgentConfig
from rlbridge.gateway.agent_routes import Prepare, agent_router
from rlbridge.gateway.app import create_app
from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.gateway import Gateway
from rlbridge.gateway.guard import Guard
from rlbridge.gateway.gym_head import Head
from rlbridge.gateway.meter import Meter
from rlbridge.gateway.operations import operations_router
from rlbridge.gym import GymClient
from rlbridge.gym.metrics import PrometheusCollector
from rlbridge.onpolicy.tokenizer import ChatTokenizer
from rlbridge.plugins import Plugins
from rlbridge.prompts import PromptConfig

LoadTokenizer = Callable[[str], ChatTokenizer]


class EvaluatorSection(StrictModel):
    """Who judges instead of the Gym."""

    name: str
    """An evaluator; `rlbridge plugins` lists them."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its own options."""


class ServerConfig(GatewayConfig):
    """A gateway as a server."""

    policy: PolicyConfig
    """The engines behind it."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; null for the name the engine serves, if it is either."""
    gym: GymConfig | None = None
    """The resources server that answers tool calls and judges in `/run` and `/generate`."""
    evaluator: EvaluatorSection | None = None
    """Judges instead of the Gym."""
    prompt: str | None = None
    """Prompt config (a YAML file, or a built-in name such as generic/math) for rows of raw fields
    in `/run` and `/generate`; a row that has a prompt already is refused."""
    agent: AgentConfig = AgentConfig()
    """How `/run` and `/generate` play a rollout."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback only with a token_file."""
    port: int = Field(default=8100, ge=0, le=65535)
    """Port to listen on; 0 for any free one."""
    token_file: Path | None = None
    """File with the gateway's token, made with mode 0600 if there is none; null asks nobody."""
    request_timeout_s: float = Field(default=3600.0, gt=0)
    """Deadline of one request, its whole answer included."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long requests in flight may take after SIGTERM."""
    max_body_mb: float = Field(default=64.0, gt=0)
    """A longer request body is refused."""
    max_header_kb: float = Field(default=32.0, gt=0)
    """More bytes of headers are refused."""

    @model_validator(mode="after")
    def _not_open_to_all(self) -> Self:
        if self.token_file is None and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} is reached from other machines: give token_file (--token-file), so "
                "that only those who hold the token can use the policy"
            )
        return self


def read_config(path: Path | None, given: Mapping[str, Any]) -> ServerConfig:
    """The config in a YAML file, with what was given beside it.

    Args:
        path: None for no file.
        given: top-level keys that win; a mapping replaces the keys it has in the file's.

    Raises:
        ConfigError: the file can't be read, or a key or value is wrong.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"can't read the config {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} must hold a mapping, not {type(data).__name__}")
    for name, value in given.items():
        known = data.get(name)
        merged = isinstance(value, Mapping) and isinstance(known, Mapping) and name != "policy"
        data[name] = {**known, **value} if merged else value  # type: ignore[dict-item]
    if "policy" not in data:
        raise ConfigError("no policy: give --policy URL, or a config file with policy: {url: ...}")
    return ServerConfig.parse(data, where="gateway" if path is None else str(path))


@dataclass
class Server:
    """A gateway that is or was open.

    Attributes:
        config: as given.
        load_tokenizer: from a folder or a hub name.
        info: what was found behind it; None before it is open.
        draining: whether it refuses new calls.
    """

    config: ServerConfig
    load_tokenizer: LoadTokenizer
    info: EngineInfo | None = None
    draining: bool = False
    _gateway: Gateway | None = None

    def describe(self, url: str) -> str:
        """One line: where it listens, what is behind it, where captures go."""
        config, info = self.config, self.info
        if info is None:
            return f"gateway at {url}"
        tokens = "exact tokens" if info.tokens else "TEXT ONLY, nothing can be trained on"
        captures = "memory" if config.capture.folder is None else str(config.capture.folder)
        parts = [
            f"gateway at {url}",
            f"policy {info.model} by {info.wire} ({tokens})",
            f"captures in {captures}",
        ]
        if config.gym is not None:
            parts.append(f"gym {config.gym.url}")
        if config.evaluator is not None:
            parts.append(f"judged by {config.evaluator.name}")
        if config.token_file is not None:
            parts.append(f"token in {config.token_file}")
        return "; ".join(parts)

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self.draining = True
        if self._gateway is not None:
            self._gateway.drain()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """Find the engine, open everything; the ASGI app. Closes everything on leaving.

        Raises:
            ConfigError: an option, a token file or a tokenizer is wrong.
            EngineError: no engine came up in time.
        """
        config = self.config
        access = None if config.token_file is None else _access(config.token_file)
        async with AsyncExitStack() as stack:
            engine = open_engine(config.policy)
            stack.push_async_callback(engine.aclose)
            gym = None if config.gym is None else GymClient(config.gym)
            if gym is not None:
                await stack.enter_async_context(gym)
            evaluator = None
            if config.evaluator is not None:
                section = config.evaluator
                evaluator = Plugins().evaluator(section.name, section.options)
                stack.push_async_callback(evaluator.aclose)
            self.info = await engine.info()
            name = config.tokenizer or self.info.model
            tokenizer = self.load_tokenizer(name)
            ends = config.stop_token_ids or _turn_ends(Path(name) / "generation_config.json")
            core = config.model_copy(update={"stop_token_ids": ends})
            gateway = Gateway(engine, tokenizer, core)
            self._gateway = await stack.enter_async_context(gateway)
            agent = Agent(gateway, gym=gym, evaluator=evaluator, config=config.agent)
            app = self._app(gateway, engine, agent, gym, access)
            _spare_the_collector()
            yield app

    def _app(
        self,
        gateway: Gateway,
        engine: ReplicaPool,
        agent: Agent,
        gym: GymClient | None,
        access: Access | None,
    ) -> Any:
        config = self.config

        def counts() -> dict[str, int]:
            stats = engine.stats
            return gateway.counts() | {
                "engine_requests": stats.requests,
                "engine_failovers": stats.failovers,
                "engine_aborts": stats.aborts,
                "replicas": len(stats.replicas),
                "replicas_admitted": sum(replica.admitted for replica in stats.replicas),
            }

        def status() -> dict[str, Any]:
            replicas = [asdict(replica) for replica in engine.stats.replicas]
            return {"counts": counts(), "replicas": replicas}

        meter = None
        if importlib.util.find_spec("prometheus_client") is not None:
            meter = Meter(counts, () if gym is None else (PrometheusCollector(gym),))
        gym_url = "" if config.gym is None else config.gym.url
        head = Head(config.agent.names, config.model or gateway.info.model, gym_url)
        routers = [
            operations_router(gateway, head, meter, status, lambda: self.draining),
            agent_router(agent, _prepared_by(config.prompt)),
        ]
        guard = Middleware(
            Guard,  # type: ignore[arg-type, unused-ignore]
            access=access,
            max_body_bytes=int(config.max_body_mb * 1e6),
            max_header_bytes=int(config.max_header_kb * 1e3),
            timeout_s=config.request_timeout_s,
            secrets=_secrets(config),
        )
        app = create_app(gateway, routers=routers, middleware=[guard])
        return app if meter is None else meter.wrap(app)


def _turn_ends(generation_config: Path) -> tuple[int, ...]:
    """The IDs at which vLLM ends answers of a model in a folder; none for one from a hub."""
    try:
        ends = json.loads(generation_config.read_text(encoding="utf-8")).get("eos_token_id")
    except OSError:
        return ()
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list) else (ends,)


def _spare_the_collector() -> None:
    """Keep what lives as long as the process out of every garbage collection.

    A tokenizer's libraries leave half a million objects behind; looking at all of them again and
    again took a quarter of the gateway's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _access(token_file: Path) -> Access:
    return Access(read_or_make_token(token_file))


def _prepared_by(prompt: str | None) -> Prepare | None:
    if prompt is None:
        return None
    loaded = PromptConfig.load(prompt)

    def prepare(row: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return loaded.apply(row)
        except ConfigError as error:
            raise ApiError(str(error), status=422, code="bad_row") from error

    return prepare


def _secrets(config: ServerConfig) -> list[str]:
    """What stands in the config and in no answer."""
    key = config.policy.api_key
    secrets = [] if key is None else [key.get_secret_value()]
    if config.gym is not None:
        secrets += [value.get_secret_value() for value in config.gym.headers.values()]
    return secrets
