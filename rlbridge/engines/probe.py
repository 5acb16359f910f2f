"""Finds out how a server is to be spoken to, in a few requests of one token each.

By capability, never by version. A way counts only where its reply proves it: unknown fields are
ignored with a 200, so the prompt's IDs that come back are compared with those that were sent.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from rlbridge.contracts import wire
from rlbridge.contracts.codecs.engine import parse_token_id
from rlbridge.contracts.tokens import LogprobsMode
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import EngineInfo
from rlbridge.engines.transport import EngineHttp
from rlbridge.engines.wires import CHAT_PATH, PATHS, Spoken
from rlbridge.errors import ConfigError, ContractError, EngineError

Json = dict[str, Any]
# In every vocabulary, above the special tokens that some have in front; no chat template's text.
_PROMPTS: Final = ([71, 83, 67, 79, 73], [97, 61, 103, 59], [89, 53, 101])
_MESSAGES: Final = [{"role": "user", "content": "Hi"}]
_TOOL: Final = {
    "type": "function",
    "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}},
}
# Two distributions that sharpen and flatten; where logprobs know the temperature they differ.
_TEMPERATURES: Final = (0.5, 2.0)
_CERTAIN: Final = -1e-3
_SAME: Final = 0.02


@dataclass(frozen=True)
class _Server:
    http: EngineHttp
    config: PolicyConfig
    model: str
    max_model_len: int | None
    two_routes: bool

    @property
    def sampling(self) -> Json:
        """The sampling of a probe: exact where the trainer insists."""
        only = {"temperature": self.config.temperature, "top_p": self.config.top_p}
        if self.two_routes:
            only = {name: 1.0 if value is None else value for name, value in only.items()}
        return {name: value for name, value in only.items() if value is not None}


async def probe(http: EngineHttp, config: PolicyConfig) -> Spoken:
    """What the server is and how it is spoken to.

    Raises:
        ConfigError: the model's name is needed, or the wire that was asked for isn't there.
        EngineError: the server answers none of the routes, or refuses the key.
    """
    server = await _server(http, config)
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


async def _server(http: EngineHttp, config: PolicyConfig) -> _Server:
    """The server's model; two routes alone are NeMo-RL's."""
    two_routes, length = config.wire == "nemo_rl", None
    try:
        cards = (await http.get("/v1/models")).get("data") or []
    except EngineError as error:
        if error.status not in (404, 405):
            raise
        cards = []
        tokenizes, length = await _tokenizes(http, config)
        two_routes = two_routes or (config.wire == "auto" and tokenizes)
    names = [str(card.get("id")) for card in cards]
    card = next((card for card in cards if card.get("id") == config.model), None)
    if card is None and config.model is not None and cards:
        raise ConfigError(f"{http.root} serves {_some(names)}, not the model {config.model!r}")
    if card is None and cards:
        own = [known for known in cards if not known.get("parent")]  # the others are adapters
        if len(own) != 1:
            raise ConfigError(f"{http.root} serves {_some(names)}: set model to one of them")
        card = own[0]
    model = config.model or (card or {}).get("id")
    if not model:
        raise ConfigError(
            f"{http.root} doesn't tell its model (no /v1/models): set model to the name the "
            "trainer serves it by (NeMo-RL: policy.model_name)"
        )
    length = (card or {}).get("max_model_len", length)
    return _Server(http, config, str(model), length, two_routes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


async def _tokenizes(http: EngineHttp, config: PolicyConfig) -> tuple[bool, int | None]:
    """Whether there is a /tokenize: then it is NeMo-RL's, with two routes; and its context."""
    try:
        told = await http.post("/tokenize", {"prompt": "a"}, timeout_s=config.health_timeout_s)
    except EngineError as error:
        return error.status not in (0, 404, 405), None
    return True, told.get("max_model_len")


async def _token_chat(server: _Server, name: str = "token_chat") -> Spoken | None:
    """Chat that takes the prompt's IDs; with tools first, to see whether it parses them."""
    for tools in ({"tools": [_TOOL], "tool_choice": "auto"}, {}):
        body = {
            "model": server.model,
            "messages": _MESSAGES,
            "kv_transfer_params": {wire.PROMPT_TOKEN_IDS: _PROMPTS[0]},
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
        if not _is_prompted(reply, _PROMPTS[0]) or not _sampled_ids(reply):
            return None
        return _spoken(server, name, parses=bool(tools), token_in=True)
    return None


async def _completions(server: _Server) -> Spoken | None:
    body = {
        "model": server.model,
        "prompt": _PROMPTS[0],
        "max_tokens": 1,
        "logprobs": 0,
        "return_token_ids": True,
        **server.sampling,
    }
    reply = await _tried(server, PATHS["completions"], body)
    if reply is None or not _is_prompted(reply, _PROMPTS[0]) or not _sampled_ids(reply):
        return None
    return _spoken(server, "completions", token_in=True)


async def _generate(server: _Server) -> Spoken | None:
    """Tokens in and out by construction; the count says that none was added."""
    body = {
        "model": server.model,
        "token_ids": _PROMPTS[0],
        "sampling_params": {"max_tokens": 1, "logprobs": 0, **server.sampling},
        "output_mode": "text",
        "return_token_ids": True,
    }
    reply = await _tried(server, PATHS["generate"], body)
    if reply is None or not _sampled_ids(reply):
        return None
    counted = (reply.get("usage") or {}).get("prompt_tokens")
    if counted != len(_PROMPTS[0]):
        return None
    text = reply["choices"][0].get("text") is not None
    return replace(_spoken(server, "generate", token_in=True), text_mode=text)


async def _nemo_rl(server: _Server) -> Spoken | None:
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
        "messages": _MESSAGES,
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


async def _text(server: _Server) -> Spoken | None:
    return _text_only(server)


_PROBES = {
    "token_chat": _token_chat,
    "completions": _completions,
    "generate": _generate,
    "nemo_rl": _nemo_rl,
    "text": _text,
}
_REFUSALS: Final = frozenset({400, 403, 404, 405, 415, 422, 501})


async def _tried(server: _Server, path: str, body: Json) -> Json | None:
    """The reply; None where the server doesn't offer this."""
    try:
        return await server.http.post(path, body)
    except EngineError as error:
        if error.status in _REFUSALS or error.code == "bad_reply":
            return None
        raise


def _spoken(server: _Server, name: str, *, parses: bool = False, token_in: bool) -> Spoken:
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


def _text_only(server: _Server) -> Spoken:
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


async def _completed(server: _Server, spoken: Spoken) -> Spoken:
    """The rest of what is to be known: logprobs' mode, weights' version."""
    if not spoken.info.tokens:
        return spoken
    if server.two_routes or spoken.info.wire == "nemo_rl":
        set_there = LogprobsMode.PROCESSED  # its engine always runs so
        return replace(spoken, logprobs_mode=server.config.logprobs_mode or set_there)
    version, tells = await _weight_version(server)
    mode = server.config.logprobs_mode or await _logprobs_mode(server, spoken)
    told = replace(spoken, logprobs_mode=mode, tells_version=tells)
    return told.at_version(version)


async def _weight_version(server: _Server) -> tuple[str | None, bool]:
    try:
        told = await server.http.get("/weight_info")
    except EngineError:
        return None, False
    version = told.get("weight_version")
    return (None, False) if version is None else (str(version), True)


async def _logprobs_mode(server: _Server, spoken: Spoken) -> LogprobsMode | None:
    """Whether the likeliest token's logprob knows the temperature; None where all are certain."""
    for prompt in _PROMPTS:
        low, high = [
            await _best_logprob(server, spoken, prompt, temperature)
            for temperature in _TEMPERATURES
        ]
        if low is None or high is None:
            return None
        if high > 0 or low > 0:
            raise ConfigError(
                f"{server.http.root} reports logits for logprobs; start it with --logprobs-mode "
                "processed_logprobs or raw_logprobs"
            )
        if min(low, high) > _CERTAIN:
            continue
        return LogprobsMode.RAW if abs(low - high) < _SAME else LogprobsMode.PROCESSED
    return None


async def _best_logprob(
    server: _Server, spoken: Spoken, prompt: list[int], temperature: float
) -> float | None:
    """The largest logprob in the first place after `prompt`."""
    # Two: chat and generate put the sampled token first and cut the rest.
    params: Json = {"max_tokens": 1, "temperature": temperature, "logprobs": 2}
    body: Json = {"model": server.model, **params}
    if spoken.info.wire == "generate":
        body = {"model": server.model, "token_ids": prompt, "sampling_params": params}
    elif spoken.info.wire == "completions":
        body["prompt"] = prompt
    else:
        body |= {
            "messages": _MESSAGES,
            "kv_transfer_params": {wire.PROMPT_TOKEN_IDS: prompt},
            "logprobs": True,
            "top_logprobs": 2,
        }
    try:
        reply = await server.http.post(spoken.path, body)
        logprobs = reply["choices"][0]["logprobs"]
        if "content" in logprobs:
            entry = logprobs["content"][0]
            values = [entry["logprob"], *(top["logprob"] for top in entry["top_logprobs"])]
        else:
            values = [*logprobs["top_logprobs"][0].values()]
        return float(max(values))
    except (EngineError, LookupError, TypeError, ValueError):
        return None
