"""Finds out how a server is to be spoken to, in a few requests of one token each.

By capability, never by version. A way counts only where its reply proves it: unknown fields are
ignored with a 200, so the prompt's IDs that come back are compared with those that were sent.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from rlbridge.contracts import wire
from rlbridge.contracts.codecs.engine import parse_token_id
from rlbridge.contracts.tokens import LogprobsMode
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import EngineInfo
from rlbridge.engines.logprobs_mode import logprobs_mode
from rlbridge.engines.served import MESSAGES, PROMPTS, Server, served
from rlbridge.engines.transport import EngineHttp
from rlbridge.engines.wires import CHAT_PATH, PATHS, Spoken
from rlbridge.errors import ConfigError, ContractError, EngineError

Json = dict[str, Any]
_TOOL: Final = {
    "type": "function",
    "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}},
}


async def probe(http: EngineHttp, config: PolicyConfig) -> Spoken:
    """What the server is and how it is spoken to.

    Raises:
        ConfigError: the model's name is needed, or the wire that was asked for isn't there.
        EngineError: the server answers none of the routes, or refuses the key.
    """
    server = await served(http, config)
    if config.wire == "auto":
        wanted = ["nemo_rl"] if server.two_routes else ["token_chat", "generate", "completions"]
    else:
        wanted = [config.wire]
    found: list[Spoken] = []
    for name in wanted:
        spoken = await _PROBES[name](server)
        if spoken is not None:
            found.append(spoken)
            if spoken.info.parses or spoken.text_mode:
                break
    if not found and config.wire in ("auto", "text"):
        found = [_text_only(server)]
    if not found:
        raise ConfigError(
            f"{http.root} doesn't offer wire: {config.wire} with exact tokens; leave it at auto, "
            "or see docs/engines.md for what each wire needs"
        )
    return await _completed(server, _best(found))


def _best(found: list[Spoken]) -> Spoken:
    """Chat that parses, else generate with text, else completions: text can be parsed here."""
    for good in found:
        if good.info.parses or good.text_mode:
            return good
    order = ("nemo_rl", "completions", "generate", "token_chat", "text")
    return min(found, key=lambda spoken: order.index(spoken.info.wire))


async def _token_chat(server: Server, name: str = "token_chat") -> Spoken | None:
    """Chat that takes the prompt's IDs; with tools first, to see whether it parses them."""
    for tools in ({"tools": [_TOOL], "tool_choice": "auto"}, {}):
        body = {
            "model": server.model,
            "messages": MESSAGES,
            "kv_transfer_params": {wire.PROMPT_TOKEN_IDS: PROMPTS[0]},
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
            **server.sampling,
            **tools,
        }
        try:
            reply = await server.http.post(CHAT_PATH, body)
        except EngineError as error:
            if error.status in _REFUSALS:
                continue
            raise
        if not _is_prompted(reply, PROMPTS[0]) or not _sampled_ids(reply):
            return None
        return _spoken(server, name, parses=bool(tools), token_in=True)
    return None


async def _completions(server: Server) -> Spoken | None:
    body = {
        "model": server.model,
        "prompt": PROMPTS[0],
        "max_tokens": 1,
        "logprobs": 0,
        "return_token_ids": True,
        **server.sampling,
    }
    reply = await _tried(server, PATHS["completions"], body)
    if reply is None or not _is_prompted(reply, PROMPTS[0]) or not _sampled_ids(reply):
        return None
    return _spoken(server, "completions", token_in=True)


async def _generate(server: Server) -> Spoken | None:
    """Tokens in and out by construction; the count says that none was added."""
    body = {
        "model": server.model,
        "token_ids": PROMPTS[0],
        "sampling_params": {"max_tokens": 1, "logprobs": 0, **server.sampling},
        "output_mode": "text",
        "return_token_ids": True,
    }
    reply = await _tried(server, PATHS["generate"], body)
    if reply is None or not _sampled_ids(reply):
        return None
    counted = (reply.get("usage") or {}).get("prompt_tokens")
    if counted != len(PROMPTS[0]):
        return None
    text = reply["choices"][0].get("text") is not None
    return replace(_spoken(server, "generate", token_in=True), text_mode=text)


async def _nemo_rl(server: Server) -> Spoken | None:
    """NeMo-RL's server: exact prompts where its vLLM takes them, else its own splice."""
    server = replace(server, two_routes=True)
    try:
        spoken = await _token_chat(server, "nemo_rl")
    except EngineError as error:
        if error.status != 500:
            raise
        only = ", ".join(f"{name} {value:g}" for name, value in server.sampling.items())
        raise ConfigError(
            f"{server.http.root} refuses to sample with {only}: NeMo-RL's server answers 500 to "
            "all but the trainer's sampling. Set the policy's temperature and top_p to those of "
            "policy.generation; if they are, its log has the reason"
        ) from error
    if spoken is not None:  # it takes tools with a 200 whether or not it has a parser
        return replace(spoken, info=replace(spoken.info, parses=False))
    body = {
        "model": server.model,
        "messages": MESSAGES,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        **server.sampling,
    }
    reply = await server.http.post(CHAT_PATH, body)
    if not _sampled_ids(reply):
        return None
    return _spoken(server, "nemo_rl", token_in=False)


async def _text(server: Server) -> Spoken | None:
    return _text_only(server)


_PROBES = {
    "token_chat": _token_chat,
    "completions": _completions,
    "generate": _generate,
    "nemo_rl": _nemo_rl,
    "text": _text,
}
_REFUSALS: Final = frozenset({400, 403, 404, 405, 415, 422, 501})


async def _tried(server: Server, path: str, body: Json) -> Json | None:
    """The reply; None where the server doesn't offer this."""
    try:
        return await server.http.post(path, body)
    except EngineError as error:
        if error.status in _REFUSALS or error.code == "bad_reply":
            return None
        raise


def _spoken(server: Server, name: str, *, parses: bool = False, token_in: bool) -> Spoken:
    info = EngineInfo(server.model, name, tokens=True, parses=parses,
                      max_model_len=server.max_model_len)  # fmt: skip
    only = server.sampling if server.two_routes else {}
    config = server.config
    return Spoken(
        info,
        token_in,
        temperature=only.get("temperature", config.temperature),
        top_p=only.get("top_p", config.top_p),
    )


def _text_only(server: Server) -> Spoken:
    info = EngineInfo(server.model, "text", tokens=False, parses=True)
    return Spoken(info, token_in=False)


def _is_prompted(reply: Json, prompt: list[int]) -> bool:
    """Whether the reply says that the engine was prompted with exactly these IDs."""
    choices = reply.get("choices") or [{}]
    for holder in (reply, choices[0], choices[0].get("message") or {}):
        given = holder.get(wire.PROMPT_TOKEN_IDS)
        if given is not None:
            return bool(np.array_equal(given, prompt))
    return False


def _sampled_ids(reply: Json) -> list[int]:
    """The IDs sampled in the first choice, wherever they are; empty if nowhere."""
    choice = (reply.get("choices") or [{}])[0]
    for holder, name in (
        (choice, wire.TOKEN_IDS),
        (choice.get("message") or {}, wire.GENERATION_TOKEN_IDS),
    ):
        if holder.get(name):
            return list(holder[name])
    logprobs = choice.get("logprobs") or {}
    names = [entry.get("token") for entry in logprobs.get("content") or ()]
    try:
        return [parse_token_id(name) for name in names or logprobs.get("tokens") or ()]
    except ContractError:
        return []


async def _completed(server: Server, spoken: Spoken) -> Spoken:
    """The rest of what is to be known: logprobs' mode, weights' version."""
    if not spoken.info.tokens:
        return spoken
    if server.two_routes or spoken.info.wire == "nemo_rl":
        set_there = LogprobsMode.PROCESSED  # its engine always runs so
        return replace(spoken, logprobs_mode=server.config.logprobs_mode or set_there)
    version, tells = await _weight_version(server)
    mode = server.config.logprobs_mode or await logprobs_mode(server, spoken)
    told = replace(spoken, logprobs_mode=mode, tells_version=tells)
    return told.at_version(version)


async def _weight_version(server: Server) -> tuple[str | None, bool]:
    try:
        told = await server.http.get("/weight_info")
    except EngineError:
        return None, False
    version = told.get("weight_version")
    return (None, False) if version is None else (str(version), True)
