"""A vLLM server without a model, on a real socket: its routes, its shapes, its traps.

What it answers has the shapes of vLLM 0.32 (checked against captured replies); what it samples is
a `FakeModel`'s. The same class stands for NeMo-RL's server of two routes and for a server that
knows nothing of tokens.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal, TypeVar
from uuid import uuid4

import orjson

from rlbridge.testing.exchange import Exchange, LocalServer
from rlbridge.testing.vllm_chunks import DONE, Streamer, event
from rlbridge.testing.vllm_model import Answers, FakeModel, Sample
from rlbridge.testing.vllm_nemo_rl import Exact, NemoRlRequests
from rlbridge.testing.vllm_parts import Json, Parsers, Parts
from rlbridge.testing.vllm_replies import Writer, add_message_fields, text_alone
from rlbridge.testing.vllm_requests import (
    EngineFault,
    RefusedError,
    Requests,
    aborted,
    error_body,
)

_P = TypeVar("_P", bound=Parts)
_SLOW_S: Final = 30.0
_GENERATES: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/inference/v1/generate": "generate",
}


@dataclass
class VllmServer(LocalServer):
    """A server on 127.0.0.1 in the running loop; use it with `async with`.

    Attributes:
        answers: see `FakeModel`.
        model: the name it serves.
        kind: vLLM; NeMo-RL's two routes; or `text`, an OpenAI-compatible server that ignores
            every token field.
        routes: which ways to generate it offers.
        token_chat: whether chat takes `kv_transfer_params.prompt_token_ids`.
        text_mode: whether `/inference/v1/generate` knows `output_mode: text` (0.32; 0.27 doesn't).
        parsers: which parsers it runs with.
        logprobs_mode: its `--logprobs-mode`.
        exact: NeMo-RL's sampling; another answers 500.
        message_fields: NeMo-RL after 0.7: token fields on the message.
        max_model_len: its context, in tokens.
        api_key: wanted as a bearer token; empty for none.
        dev: whether the routes of `VLLM_SERVER_DEV_MODE` are there.
        delay_s: wait before every answer.
        token_s: wait before every token; an aborted or left generation stops there.
        faults: of the generations to come, in order; None for none.
        requests: what came, as route and body.
        resets: how often the prefix cache was reset.
        left: generations whose client went away.
    """

    answers: Answers = None
    model: str = "tiny"
    kind: Literal["vllm", "nemo_rl", "text"] = "vllm"
    routes: frozenset[str] = frozenset({"chat", "completions"})
    token_chat: bool = True
    text_mode: bool = True
    parsers: Parsers = field(default_factory=Parsers)
    logprobs_mode: Literal["raw", "processed"] = "raw"
    exact: Exact = field(default_factory=Exact)
    message_fields: bool = False
    max_model_len: int = 2048
    api_key: str = ""
    dev: bool = True
    delay_s: float = 0.0
    token_s: float = 0.0
    faults: deque[EngineFault | str | None] = field(default_factory=deque)
    requests: list[tuple[str, Json]] = field(default_factory=list)
    resets: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        self.fake = FakeModel(self.answers, logprobs_mode=self.logprobs_mode)
        super().__init__()
        self._rules = self._reader()
        self._aborts: set[asyncio.Event] = set()

    def _reader(self) -> Requests:
        given = (
            self.fake.tokenizer,
            self.model,
            self.kind,
            self.token_chat,
            self.parsers.tools,
            self.max_model_len,
        )
        if self.kind == "nemo_rl":
            return NemoRlRequests(*given, self.exact, self.message_fields)
        return Requests(*given)

    @property
    def generations(self) -> list[Json]:
        """Bodies of the requests that generate, probes included."""
        return [body for route, body in self.requests if route in _GENERATES]

    def abort_all(self) -> int:
        """End every generation in flight with `finish_reason: abort`; how many there were."""
        for signal in self._aborts:
            signal.set()
        return len(self._aborts)

    async def answer(self, exchange: Exchange) -> bool:
        """Answer one request; False when the connection is done for."""
        try:
            body = orjson.loads(exchange.raw) if exchange.raw else {}
        except orjson.JSONDecodeError:
            return await exchange.send(400, error_body("JSON decode error", "Bad Request", "body"))
        self.requests.append((exchange.route, body))
        if self.api_key and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            return await exchange.send(401, {"error": "Unauthorized"})
        routes = self._routes()
        handler = routes.get((exchange.method, exchange.route))
        if handler is None:
            known = any(route == exchange.route for _, route in routes)
            missing = (405, "Method Not Allowed") if known else (404, "Not Found")
            return await exchange.send(missing[0], {"detail": missing[1]})
        return await handler(exchange, body)

    def _routes(self) -> "dict[tuple[str, str], _Handler]":
        routes: dict[tuple[str, str], _Handler] = {
            ("POST", path): self._generate
            for path, wire in _GENERATES.items()
            if wire in self.routes
        }
        if self.kind == "nemo_rl":
            chat = ("POST", "/v1/chat/completions")
            return {chat: routes[chat], ("POST", "/tokenize"): self._tokenize}
        routes["GET", "/v1/models"] = self._models
        if self.kind == "text":
            return routes
        routes["GET", "/health"] = self._health
        routes["GET", "/version"] = self._version
        routes["POST", "/tokenize"] = self._tokenize
        routes["POST", "/detokenize"] = self._detokenize
        if self.dev:
            routes["GET", "/weight_info"] = self._weight_info
            routes["POST", "/reset_prefix_cache"] = self._reset
            routes["POST", "/abort_requests"] = self._abort
        return routes

    async def _health(self, exchange: Exchange, _: Json) -> bool:
        return await exchange.send(200, None)

    async def _version(self, exchange: Exchange, _: Json) -> bool:
        return await exchange.send(200, {"version": "0.32.0"})

    async def _weight_info(self, exchange: Exchange, _: Json) -> bool:
        return await exchange.send(200, {"weight_version": self.fake.version})

    async def _reset(self, exchange: Exchange, _: Json) -> bool:
        self.resets += 1
        return await exchange.send(200, {"success": True})

    async def _abort(self, exchange: Exchange, _: Json) -> bool:
        return await exchange.send(200, {"status": "aborted", "aborted": self.abort_all()})

    async def _models(self, exchange: Exchange, _: Json) -> bool:
        card: Json = {"id": self.model, "object": "model", "created": 0, "owned_by": "vllm"}
        if self.kind == "vllm":
            card |= {"root": self.model, "parent": None, "max_model_len": self.max_model_len}
            card["permission"] = []
        return await exchange.send(200, {"object": "list", "data": [card]})

    async def _tokenize(self, exchange: Exchange, body: Json) -> bool:
        try:
            ids = self._rules.tokenized(body)
        except RefusedError as refused:
            return await exchange.send(refused.status, refused.body, refused.kind)
        answer = {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids}
        return await exchange.send(200, {**answer, "token_strs": None})

    async def _detokenize(self, exchange: Exchange, body: Json) -> bool:
        return await exchange.send(200, {"prompt": self.fake.tokenizer.decode(body["tokens"])})

    async def _generate(self, exchange: Exchange, body: Json) -> bool:
        wire = _GENERATES[exchange.route]
        fault = self.faults.popleft() if self.faults else None
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if fault is not None and (done := await self._broken(exchange, EngineFault(fault))):
            return done is _KEEP
        try:
            prompt = self._rules.prompt(wire, body)
            if fault == EngineFault.OTHER_PROMPT:
                prompt = [*prompt, 0]
            params = self._rules.params(wire, body, prompt)
        except RefusedError as refused:
            if refused.in_stream:
                exchange.start_stream()
                await exchange.piece(event(refused.body))
                await exchange.piece(DONE)
                return await exchange.end_stream()
            return await exchange.send(refused.status, refused.body, refused.kind)
        return await self._sampled(exchange, wire, prompt, params, body, fault)

    async def _broken(self, exchange: Exchange, fault: EngineFault) -> "object | None":
        """Play a fault that needs no sample; None if it does."""
        if fault is EngineFault.RESET:
            exchange.reset()
            return _CLOSE
        if fault is EngineFault.SLOW:
            await exchange.wait_for_client(_SLOW_S)
            self.left += 1
            return _CLOSE
        if fault.startswith("status_"):
            status = int(fault[-3:])
            phrase = HTTPStatus(status).phrase
            await exchange.send(status, error_body(phrase, phrase, None, status))
            return _KEEP
        return None

    async def _sampled(
        self,
        exchange: Exchange,
        wire: str,
        prompt: list[int],
        params: Json,
        body: Json,
        fault: EngineFault | str | None,
    ) -> bool:
        count = int(params.get("n") or 1)
        samples = [self.fake.sample(prompt, params, index) for index in range(count)]
        if fault == EngineFault.ABORT:
            samples = [aborted(sample, len(sample.token_ids) // 2) for sample in samples]
        if body.get("stream"):
            streamer = self._writer(Streamer, wire, prompt, body)
            chunks = streamer.chunks(wire, samples[0], text=self._in_text(body))
            cut = len(samples[0].token_ids) // 2 if fault == EngineFault.RESET_MID_BODY else None
            return await self._stream(exchange, chunks, cut)
        if self.token_s:
            reached = await self._wait_tokens(exchange, max(len(s.token_ids) for s in samples))
            if reached is None:
                return False
            samples = [
                aborted(s, reached) if reached < len(s.token_ids) else s for s in samples
            ]  # fmt: skip
        writer = self._writer(Writer, wire, prompt, body)
        data = orjson.dumps(self._reply(writer, wire, samples, body, fault))
        if fault == EngineFault.TRUNCATED_JSON:
            data = data[: len(data) // 2]
        return await exchange.send(200, data, half=fault == EngineFault.RESET_MID_BODY)

    def _writer(self, made: type[_P], wire: str, prompt: list[int], body: Json) -> _P:
        prefix = {"chat": "chatcmpl-", "completions": "cmpl-", "generate": "generate-tokens-"}[wire]
        return made(
            self.fake.tokenizer,
            self.model,
            f"{prefix}{uuid4().hex[:16]}",
            int(time.time()),
            body,
            prompt,
            self.fake.version,
            self.parsers,
            self.kind == "nemo_rl",
        )

    def _in_text(self, body: Json) -> bool:
        return self.text_mode and body.get("output_mode") == "text"

    def _reply(
        self,
        writer: Writer,
        wire: str,
        samples: list[Sample],
        body: Json,
        fault: EngineFault | str | None,
    ) -> Json:
        reply = writer.reply(wire, samples, text=self._in_text(body))
        if fault == EngineFault.LOST_LOGPROBS:
            for choice in reply["choices"]:
                for values in (choice["logprobs"] or {}).values():
                    values.pop()
        if self.message_fields and body.get("logprobs"):
            add_message_fields(reply, writer.prompt, samples)
        return text_alone(reply) if self.kind == "text" else reply

    async def _wait_tokens(self, exchange: Exchange, count: int) -> int | None:
        """How many tokens there is time for before an abort; None if the client left."""
        signal = asyncio.Event()
        self._aborts.add(signal)
        try:
            for reached in range(count):
                if exchange.client_left:
                    self.left += 1
                    return None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(signal.wait(), self.token_s)
                    return reached
            return count
        finally:
            self._aborts.discard(signal)

    async def _stream(self, exchange: Exchange, chunks: Iterable[Json], cut: int | None) -> bool:
        exchange.start_stream()
        try:
            for number, chunk in enumerate(chunks):
                if number == cut:
                    exchange.reset()
                    return False
                if self.token_s:
                    await asyncio.sleep(self.token_s)
                if exchange.client_left:
                    self.left += 1
                    return False
                await exchange.piece(event(chunk))
        except ConnectionError:
            self.left += 1
            raise
        await exchange.piece(DONE)
        return await exchange.end_stream()


_Handler = Callable[[Exchange, Json], Awaitable[bool]]
_KEEP, _CLOSE = object(), object()
