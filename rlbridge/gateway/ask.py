"""A request, ready for the engine, and what makes two requests the same call."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson

from rlbridge.engines.engine import ChatContext, EngineCall
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.history import Node
from rlbridge.gateway.prompting import Plan
from rlbridge.gateway.sampling import Resolved
from rlbridge.gateway.sessions import Root, Session

# What is sent to the engine in other words, or is the gateway's own.
_OWN = frozenset(
    {
        "messages", "prompt", "model", "tools", "tool_choice", "stream", "stream_options", "n",
        "logprobs", "top_logprobs", "metadata", "store", "user", "return_token_ids",
        "return_tokens_as_token_ids", "required_prefix_token_ids", "temperature", "top_p",
        "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "logit_bias", "max_tokens", "max_completion_tokens", "max_output_tokens", "stop",
        "stop_token_ids", "ignore_eos", "seed",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, ready for the engine.

    Attributes:
        session: whose it is.
        root: its tools and template options.
        node: the end of its history; the root's node for plain completions.
        plan: its prompt; None for engines of text.
        resolved: its sampling parameters.
        call: for the engine.
        key: equal for requests that are the same call.
        tools: what the answer may call; None if nothing.
        text: the prompt of a plain completion, as text.
        plain: a completion: no message to parse.
        seed: names the answer among all the gateway gives.
    """

    session: Session
    root: Root
    node: Node
    plan: Plan | None
    resolved: Resolved
    call: EngineCall
    key: str
    tools: Sequence[Mapping[str, Any]] | None = None
    text: str = ""
    plain: bool = False
    seed: str = field(default_factory=lambda: uuid4().hex[:16])

    @property
    def name(self) -> str:
        """Names the answer in replies."""
        return f"{self.session.name}_{self.seed}"

    def headers(self) -> dict[str, str]:
        """What to tell a client that looks at headers."""
        headers = {"x-rlbridge-session": self.session.name}
        if self.plan is None:
            headers |= {"x-rlbridge-prompt": "text", "x-rlbridge-trainable": "false"}
        else:
            reason = f"; reason={self.plan.reason}" if self.plan.reason else ""
            headers["x-rlbridge-prompt"] = self.plan.how + reason
        if self.resolved.notes:
            notes = "; ".join(self.resolved.notes)
            headers["x-rlbridge-notes"] = notes.encode("ascii", "replace").decode()
        return headers


def engine_call(
    ask_session: Session,
    plan: Plan | None,
    resolved: Resolved,
    body: Mapping[str, Any],
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> EngineCall:
    """The call for the engine; without messages it is a plain completion.

    Raises:
        ApiError: `n` is no number of answers.
    """
    n = 1 if body.get("n") is None else body["n"]
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 128:
        raise ApiError(f"n must be an integer from 1 to 128, got {n!r}", param="n")
    extra = {key: value for key, value in body.items() if key not in _OWN and value is not None}
    return EngineCall(
        plan.prompt if plan is not None else None,
        resolved.params,
        n,
        ask_session.name,
        ChatContext(messages if messages is not None else (), tools, body.get("tool_choice"), extra)
        if messages is not None or extra
        else None,
    )


def request_key(node: Node, body: Mapping[str, Any], idempotency_key: str) -> str:
    """Names a call: the client's own key, or its history and parameters."""
    if idempotency_key:
        return f"key:{idempotency_key}"
    rest = {
        key: value
        for key, value in body.items()
        if key not in {"messages", "prompt", "tools", "stream", "stream_options"}
    }
    return f"{node.digest.hex()}-{zlib.crc32(orjson.dumps(rest)):08x}"
