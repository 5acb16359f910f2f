"""The policy behind an OpenAI-style URL: its own gateway where it has one, else ours in process.

Either way each rollout is a session whose prompts are bridged from its own tokens. A server that
gives no tokens is asked as text, and its rows say nothing of tokens. Never re-encodes a sample.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from rlbridge.contracts.reward import Reward
from rlbridge.engines.config import PolicyConfig, check_url
from rlbridge.engines.open import open_engine
from rlbridge.engines.transport import EngineHttp
from rlbridge.errors import ConfigError, ContractError, EngineError
from rlbridge.gateway.agent import Policy
from rlbridge.gateway.config import GatewayConfig, SessionsConfig
from rlbridge.gateway.errors import from_engine
from rlbridge.gateway.exchange import NOBODY, Caller, Reply, StreamedReply
from rlbridge.gateway.gateway import Gateway
from rlbridge.onpolicy.tokenizer import ChatTokenizer
from rlbridge.rollouts.config import PlayConfig

LoadTokenizer = Callable[[str], ChatTokenizer]


@dataclass(frozen=True, slots=True)
class Found:
    """A policy that answers.

    Attributes:
        policy: to be asked.
        words: what it is, for people.
    """

    policy: Policy
    words: str


@asynccontextmanager
async def open_policy(
    config: PlayConfig, load_tokenizer: LoadTokenizer, *, concurrency: int, timeout_s: float
) -> AsyncIterator[Found]:
    """The policy at `config.policy`; closed on leaving.

    Args:
        config: who plays.
        load_tokenizer: from a folder or a hub name.
        concurrency: rollouts at once; that many sessions are open together.
        timeout_s: the longest a call may take, seconds.

    Raises:
        ConfigError: the tokenizer can't be found.
        EngineError: nobody answers there.
    """
    url = check_url(config.policy or "")
    key = config.api_key.get_secret_value() if config.api_key else ""
    async with AsyncExitStack() as stack:
        http = EngineHttp(url, api_key=key, call_timeout_s=timeout_s)
        stack.push_async_callback(http.aclose)
        gateway = await _gateway_at(http)
        if gateway is not None:
            yield gateway
            return
        engine = open_engine(
            PolicyConfig(
                url=url,
                model=config.model,
                api_key=config.api_key,
                call_timeout_s=timeout_s,
                ready_timeout_s=config.policy_wait_s,
            )
        )
        stack.push_async_callback(engine.aclose)
        info = await engine.info()
        tokenizer = _tokenizer(config, info.model, load_tokenizer, needed=info.tokens)
        sessions = SessionsConfig(max_sessions=max(2 * concurrency, 16))
        local = Gateway(engine, tokenizer, GatewayConfig(sessions=sessions))
        policy = await stack.enter_async_context(local)
        tokens = "exact tokens" if info.tokens else "TEXT ONLY: nothing can be trained on exactly"
        yield Found(policy, f"{info.model} at {url} by {info.wire} ({tokens})")


class RemoteGateway:
    """An rlbridge gateway over HTTP: each rollout in a session of its own.

    Args:
        http: to its root.
    """

    def __init__(self, http: EngineHttp) -> None:
        self._http = http

    async def open_session(
        self, session: str = "", *, group_id: str = "", metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Open a session; returns its ID."""
        body = {"id": session, "group_id": group_id, "metadata": dict(metadata or {})}
        return str((await self._post("/s", body))["id"])

    async def responses(
        self, body: Mapping[str, Any], caller: Caller = NOBODY
    ) -> Reply | StreamedReply:
        """`/v1/responses` in the caller's session."""
        answer = await self._post(f"/s/{quote(caller.session, safe='')}/v1/responses", body)
        return Reply(orjson.dumps(answer))

    async def score(self, session: str, reward: Reward) -> None:
        """Nothing: the row holds the reward, and the gateway has no route for one."""

    async def end_session(self, session: str) -> None:
        """Let the gateway forget the session; what it captured on disk stays."""
        try:
            await self._http.delete(f"/s/{quote(session, safe='')}")
        except EngineError as error:
            raise from_engine(error) from error

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._http.post(path, dict(body))
        except EngineError as error:
            raise from_engine(error) from error


async def _gateway_at(http: EngineHttp) -> Found | None:
    """The rlbridge gateway at a URL; None where something else answers, or nobody yet."""
    try:
        models = (await http.get("/v1/models", timeout_s=10.0)).get("data") or [{}]
    except EngineError as error:
        if error.status in (401, 403):
            raise
        return None
    model = models[0]
    if model.get("owned_by") != "rlbridge":
        return None
    tokens = "exact tokens" if model.get("trainable") else "TEXT ONLY"
    return Found(RemoteGateway(http), f"{model.get('id')} by the gateway at {http.root} ({tokens})")


def _tokenizer(
    config: PlayConfig, model: str, load_tokenizer: LoadTokenizer, *, needed: bool
) -> ChatTokenizer:
    if not needed and config.tokenizer is None:
        return _NoTokenizer()
    try:
        return load_tokenizer(config.tokenizer or model)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. The policy calls itself {model}; say with --tokenizer whose tokenizer it "
            "has, or put `rlbridge gateway serve` before it"
        ) from error


class _NoTokenizer:
    """Stands where a policy gives text alone; it has nothing to encode."""

    chat_template = None
    eos_token_id = None

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        return {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise ContractError("a policy that gives text alone has no tokens")

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        raise ContractError("a policy that gives text alone has no tokens")

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        raise ContractError("a policy that gives text alone has no tokens")
