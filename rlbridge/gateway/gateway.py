"""The gateway's core: OpenAI requests in, exact tokens to an engine, captured calls, replies out.

In front of any `Engine`, in process or over HTTP, without a server of its own:
`rlbridge.gateway.app.create_app` puts ASGI around it. Refuses calls while it drains.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rlbridge.contracts.reward import Reward
from rlbridge.contracts.rollout import Rollout
from rlbridge.engines.engine import Engine, EngineInfo
from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.exchange import NOBODY, Caller, Reply, StreamedReply
from rlbridge.onpolicy.build import Built
from rlbridge.onpolicy.tokenizer import ChatTokenizer


class Gateway:
    """Answers OpenAI requests with an engine, and remembers every call of every session.

    Args:
        engine: whoever made it closes it.
        tokenizer: of the engine's model, with its chat template.
        config: see `GatewayConfig`.

    Every method may raise `rlbridge.gateway.errors.ApiError`, which knows its HTTP status and
    its body in OpenAI's shape.
    """

    def __init__(
        self, engine: Engine, tokenizer: ChatTokenizer, config: GatewayConfig | None = None
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.config = config or GatewayConfig()

    async def __aenter__(self) -> Self:
        """Ask the engine what it is, prove the chat template, recover captured sessions."""
        raise NotImplementedError

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for nothing; write out captures."""
        raise NotImplementedError

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        raise NotImplementedError

    @property
    def in_flight(self) -> int:
        """Calls being answered now; a server that drains waits for 0."""
        raise NotImplementedError

    def drain(self) -> None:
        """Refuse new calls with a 503 from now on; those in flight go on."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Counters and gauges by name, for /metrics.

        Calls, prompts bridged and rendered (by reason), retries, aborts, sessions and tokens in
        memory.
        """
        raise NotImplementedError

    async def chat(self, body: Mapping[str, Any], caller: Caller = NOBODY) -> Reply | StreamedReply:
        """`/v1/chat/completions`; a `StreamedReply` where the body says `stream`."""
        raise NotImplementedError

    async def completions(
        self, body: Mapping[str, Any], caller: Caller = NOBODY
    ) -> Reply | StreamedReply:
        """`/v1/completions`."""
        raise NotImplementedError

    async def responses(
        self, body: Mapping[str, Any], caller: Caller = NOBODY
    ) -> Reply | StreamedReply:
        """`/v1/responses`."""
        raise NotImplementedError

    async def tokenize(self, body: Mapping[str, Any], caller: Caller = NOBODY) -> Reply:
        """`/tokenize` in vLLM's shape; in a session, the IDs its next call would be sent."""
        raise NotImplementedError

    def models(self) -> Reply:
        """`/v1/models`."""
        raise NotImplementedError

    async def open_session(
        self, session: str = "", *, group_id: str = "", metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Open a session, or find it; returns its ID (a new one for an empty name)."""
        raise NotImplementedError

    async def rollout(self, session: str) -> Rollout:
        """All calls of a session so far, retries and branches included."""
        raise NotImplementedError

    async def built(self, session: str) -> Built:
        """Its training sequences."""
        raise NotImplementedError

    async def score(self, session: str, reward: Reward) -> None:
        """Attach a reward, which `rollout` then carries; captured like calls are."""
        raise NotImplementedError

    async def end_session(self, session: str) -> None:
        """Forget a session; captures stay on disk."""
        raise NotImplementedError
