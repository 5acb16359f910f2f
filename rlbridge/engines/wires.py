"""Calls as request bodies, one way of speaking to an engine each. Refuses what a wire can't say.

Replies are read by `rlbridge.contracts.codecs`, whatever the wire. A whole reply names its tokens
in the logprobs and leaves the prompt out, which the engine was proven to take as it is (a prompt
of 100,000 tokens needn't come back); a stream gives `token_ids`, because vLLM leaves chunks
without text out of it otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlbridge.contracts import wire
from rlbridge.contracts.tokens import LogprobsMode, Provenance
from rlbridge.engines.engine import ChatContext, EngineCall, EngineInfo
from rlbridge.errors import EngineError

Json = dict[str, Any]

CHAT_PATH = "/v1/chat/completions"
PATHS = {
    "token_chat": CHAT_PATH,
    "nemo_rl": CHAT_PATH,
    "text": CHAT_PATH,
    "completions": "/v1/completions",
    "generate": "/inference/v1/generate",
}
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Fields of a client's request that change what is sampled or how it is parsed, and no others: a
# client must not reach the fields that tokens travel in.
_EXTRA = (
    "response_format",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "reasoning_effort",
    "structured_outputs",
)
# The prompt's IDs are all that counts, so the messages needn't travel along with each turn.
_NO_MESSAGES = [{"role": "user", "content": "-"}]


@dataclass(frozen=True, slots=True)
class Spoken:
    """How one engine is spoken to, found by asking it once.

    Attributes:
        info: what it is.
        token_in: whether it is prompted with exactly the IDs that are sent.
        logprobs_mode: what its logprobs are of; None if nobody knows.
        text_mode: whether its `/inference/v1/generate` gives text.
        tells_version: whether it has `/weight_info`.
        temperature: the only one allowed; None for any.
        top_p: likewise.
    """

    info: EngineInfo
    token_in: bool
    logprobs_mode: LogprobsMode | None = None
    text_mode: bool = False
    tells_version: bool = False
    temperature: float | None = None
    top_p: float | None = None

    @property
    def path(self) -> str:
        """The route that generates."""
        return PATHS[self.info.wire]

    def at_version(self, version: int | str | None) -> "Spoken":
        """The same engine with other weights."""
        return replace(self, info=replace(self.info, policy_version=version))


def body_of(call: EngineCall, spoken: Spoken, *, stream: bool) -> Json:
    """The request body of a call.

    Raises:
        EngineError: the engine can't be asked this (no prompt, no messages, sampling that the
            trainer forbids, no room for an answer); nothing was sent.
    """
    if stream and call.n != 1:
        raise refusal("a stream has one answer; ask with n=1", "n")
    params = _sampling(call, spoken)
    if spoken.info.wire == "generate":
        return _generate_body(call, spoken, params, stream=stream)
    body: Json = {"model": spoken.info.model, **params}
    if call.n != 1:
        body["n"] = call.n
    if call.cache_salt and spoken.info.tokens:
        body["cache_salt"] = call.cache_salt
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if spoken.info.wire == "completions":
        return body | _completion_fields(call, stream=stream)
    return body | _chat_fields(call, spoken, stream=stream)


def refusal(message: str, param: str | None = None, code: str = "invalid_request") -> EngineError:
    """The error for a call that isn't sent."""
    return EngineError(message, status=400, code=code, param=param)


def _sampling(call: EngineCall, spoken: Spoken) -> Json:
    """Sampling parameters as they are sent. The limit of tokens goes under one name."""
    params = {
        name: value
        for name, value in call.sampling.items()
        if value is not None and name not in _MAX_TOKENS
    }
    if spoken.info.tokens:
        # A request's seed with a chunked prefill ends vLLM's engine (0.32 on a CPU).
        params.pop("seed", None)
    for name in ("temperature", "top_p"):
        only = getattr(spoken, name)
        if only is not None and params.setdefault(name, only) != only:
            raise refusal(
                f"{name} is {params[name]}, but the trainer allows {only} alone", name, "off_policy"
            )
    if spoken.info.wire == "nemo_rl" and params.get("top_k", -1) != -1:
        raise refusal(f"top_k is {params['top_k']}, but NeMo-RL allows none", "top_k", "off_policy")
    limits = [call.sampling[name] for name in _MAX_TOKENS if call.sampling.get(name) is not None]
    room = _room(call, spoken)
    if room is not None:
        wanted = limits[0] if limits else room if call.chat is not None else None
        params |= {} if wanted is None else {"max_tokens": min(wanted, room)}
    elif limits:
        params["max_tokens"] = limits[0]
    return params


def _room(call: EngineCall, spoken: Spoken) -> int | None:
    """How many tokens the answer may have; None if nobody knows."""
    if call.prompt is None or spoken.info.max_model_len is None:
        return None
    room = spoken.info.max_model_len - len(call.prompt)
    if room < 1:
        raise refusal(
            f"the prompt has {len(call.prompt)} tokens, the model's maximum context length is "
            f"{spoken.info.max_model_len}",
            "input_tokens",
            "context_length_exceeded",
        )
    return room


def _ids(call: EngineCall) -> Any:
    if call.prompt is None:
        raise refusal("this engine is prompted with token IDs, and the call has none")
    return np.ascontiguousarray(call.prompt.token_ids)


def _chat(call: EngineCall) -> ChatContext:
    if call.chat is None or not call.chat.messages:
        raise refusal("this engine is prompted with messages, and the call has none", "messages")
    return call.chat


def _extra(call: EngineCall) -> Json:
    extra = call.chat.extra if call.chat is not None else {}
    return {name: extra[name] for name in _EXTRA if extra.get(name) is not None}


def _tools(chat: ChatContext) -> Json:
    if not chat.tools:
        return {}
    choice = {} if chat.tool_choice is None else {"tool_choice": chat.tool_choice}
    return {"tools": list(chat.tools), **choice}


def _chat_fields(call: EngineCall, spoken: Spoken, *, stream: bool) -> Json:
    fields = _extra(call)
    if not spoken.info.tokens:
        chat = _chat(call)
        return {"messages": list(chat.messages), **_tools(chat), **fields}
    fields |= {"logprobs": True, "top_logprobs": 0}
    # NeMo-RL's server names tokens by itself; with exact prompts one list of them is enough.
    asked = wire_ids(stream) if spoken.token_in else {"return_token_ids": True}
    if spoken.token_in:
        fields |= {
            "messages": _NO_MESSAGES,
            "kv_transfer_params": {wire.PROMPT_TOKEN_IDS: _ids(call)},
        }
    else:
        known = _known_prefix(call)
        messages = list(_chat(call).messages)
        fields |= {"messages": _before_splice(messages) if known else messages, **known}
    # NeMo-RL's server renders the tools itself, and doesn't tell whether it parses their calls.
    if call.chat is not None and (spoken.info.parses or spoken.info.wire == "nemo_rl"):
        fields |= _tools(call.chat)
    return fields | asked


def wire_ids(stream: bool) -> Json:
    """The field that makes sampled IDs come back."""
    return {"return_token_ids": True} if stream else {"return_tokens_as_token_ids": True}


def _known_prefix(call: EngineCall) -> Json:
    """NeMo-RL's splice: the tokens up to the end of what was sampled last, its own behind them."""
    if call.prompt is None:
        return {}
    sampled = np.flatnonzero(call.prompt.provenance == Provenance.SAMPLED)
    if not len(sampled):
        return {}
    return {"required_prefix_token_ids": call.prompt.token_ids[: sampled[-1] + 1].tolist()}


def _before_splice(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages for NeMo-RL's splice, which keeps what its template writes behind the last answer.

    Answers come without what they said: their tokens are sent. v0.7.0 looks for the splice by
    position, which moves (an assert, or a user turn that is gone) where a template leaves old
    reasoning out.
    """
    return [
        {"role": "assistant", "content": "-", **_called(message)}
        if message.get("role") == "assistant"
        else message
        for message in messages
    ]


def _called(message: Mapping[str, Any]) -> Json:
    return {"tool_calls": message["tool_calls"]} if message.get("tool_calls") else {}


def _completion_fields(call: EngineCall, *, stream: bool) -> Json:
    fields = {"prompt": _ids(call), "logprobs": 0, **wire_ids(stream)}
    extra = _extra(call)
    kept = ("response_format", "structured_outputs")
    return fields | {name: extra[name] for name in kept if name in extra}


def _structure(call: EngineCall) -> Json:
    """`response_format` as vLLM's sampling parameters have it."""
    extra = _extra(call)
    if "structured_outputs" in extra:
        return {"structured_outputs": extra["structured_outputs"]}
    asked = extra.get("response_format") or {}
    if asked.get("type") == "json_schema":
        return {"structured_outputs": {"json": asked["json_schema"].get("schema")}}
    return (
        {"structured_outputs": {"json_object": True}} if asked.get("type") == "json_object" else {}
    )


def _generate_body(
    call: EngineCall, spoken: Spoken, params: Mapping[str, Any], *, stream: bool
) -> Json:
    body: Json = {
        "model": spoken.info.model,
        "token_ids": _ids(call),
        "sampling_params": {**params, **_structure(call), "logprobs": 0, "n": call.n},
    }
    if spoken.text_mode:
        body["output_mode"] = "text"
    if call.cache_salt:
        body["cache_salt"] = call.cache_salt
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body
