"""The gateway's core: OpenAI requests in, exact tokens to an engine, captured calls, replies out.

In front of any `Engine`, in process or over HTTP, without a server of its own:
`rlbridge.gateway.app.create_app` puts ASGI around it. Refuses calls while it drains.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import orjson

from rlbridge.contracts.reward import Reward
from rlbridge.contracts.rollout import Rollout
from rlbridge.contracts.tokens import Encoding
from rlbridge.engines.engine import Engine, EngineInfo
from rlbridge.gateway.ask import Ask
from rlbridge.gateway.asking import Asker
from rlbridge.gateway.calling import EngineCaller
from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.chat import ChatWriter, Wanted
from rlbridge.gateway.completions import completion_body, prompts_of
from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.conversations import Conversations
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.events import chat_events, completion_events, ending, response_events
from rlbridge.gateway.exchange import NOBODY, Caller, Reply, StreamedReply
from rlbridge.gateway.openai_types import check_request
from rlbridge.gateway.outcome import Outcome
from rlbridge.gateway.parsing import AnswerReader
from rlbridge.gateway.places import Places
from rlbridge.gateway.prompting import Prompter
from rlbridge.gateway.records import reward_record
from rlbridge.gateway.responses import ResponsesWriter, chat_request, no_response, previous
from rlbridge.gateway.retention import Retention
from rlbridge.gateway.store import SessionStore
from rlbridge.gateway.traffic import Traffic, together
from rlbridge.onpolicy.build import Built, build
from rlbridge.onpolicy.tokenizer import ChatTokenizer, encoding_of

Body = Mapping[str, Any]


class Gateway:
    """Answers OpenAI requests with an engine, and remembers every call of every session.

    Args:
        engine: whoever made it closes it.
        tokenizer: of the engine's model, with its chat template.
        config: see `GatewayConfig`.

    Every method may raise `rlbridge.gateway.errors.ApiError`, which knows its HTTP status and
    its body in OpenAI's shape.

    Attributes:
        is_open: between `__aenter__` and `__aexit__`.
    """

    def __init__(
        self, engine: Engine, tokenizer: ChatTokenizer, config: GatewayConfig | None = None
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.config = config or GatewayConfig()
        self.is_open = False
        self._counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        """Ask the engine what it is, prove the chat template, recover captured sessions.

        Raises:
            EngineError: nobody answers.
            ConfigError: the captures' folder can't be used.
        """
        config = self.config
        self._info = await self.engine.info()
        self.model = config.model or self._info.model
        async with AsyncExitStack() as stack:
            self._log = await self._open_log(stack)
            prompter = Prompter(
                self.tokenizer, ends=config.stop_token_ids, options=config.template_options
            )
            if self._info.tokens and getattr(self.tokenizer, "chat_template", None) is not None:
                await asyncio.to_thread(prompter.bridge)
            self._store = SessionStore(config.sessions, self._log)
            places = Places(self._store, implicit=config.sessions.implicit)
            self._asker = Asker(prompter, places, config, self._info, self.model)
            self._talk = Conversations(
                EngineCaller(self.engine, config, self._counts),
                AnswerReader(self.tokenizer, config.parsing),
                self._store,
                self._log,
                self._counts,
                self.model,
                _encoding(self.tokenizer),
            )
            self._traffic = Traffic(self._talk)
            if self._log is not None and config.capture.deletes:
                retention = Retention(self._log, self._store, config.capture, self._counts)
                stack.push_async_callback(retention.aclose)
            self._opened = stack.pop_all()
        self.is_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write out captures; waits for no call."""
        self.is_open = False
        await self._opened.aclose()

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        return self._info

    @property
    def in_flight(self) -> int:
        """Calls being answered now; a server that drains waits for 0."""
        return self._traffic.in_flight

    def drain(self) -> None:
        """Refuse new calls with a 503 from now on; those in flight go on."""
        self._traffic.drain()

    def counts(self) -> dict[str, int]:
        """Counters and gauges by name, for /metrics.

        `calls`, `sampled_tokens`; prompts by how they came about (`prompts_bridged`,
        `prompts_rendered`, `prompts_spliced`) and why they were rendered (`rendered_...`);
        `replayed`, `aborted`, `failed_calls`, `engine_errors`, `untokened`, `capture_errors`,
        `prompts_changed_by_engine`; `pruned_segments`, `pruned_sessions`, `pruned_bytes`,
        `prune_errors`; gauges `in_flight`, `sessions`, `session_tokens`.
        """
        self._store.expire()
        gauges = {
            "in_flight": self.in_flight,
            "sessions": len(self._store),
            "session_tokens": self._store.held,
        }
        return dict(self._counts) | gauges

    async def chat(self, body: Body, caller: Caller = NOBODY) -> Reply | StreamedReply:
        """`/v1/chat/completions`; a `StreamedReply` where the body says `stream`."""
        ask = await self._traffic.asked(self._asker.chat(body, caller))
        wanted = Wanted.of(body, fields=self.config.token_fields)
        if body.get("stream"):
            pieces = await self._traffic.pieces(ask, caller)
            events = chat_events(pieces, self.tokenizer, wanted, name=ask.name, model=self.model)
            return StreamedReply(ending(events, [pieces]), ask.headers())
        outcome = await self._traffic.answer(ask, caller)
        return self._reply(ChatWriter(self.tokenizer, outcome, wanted).body(), outcome, ask)

    async def completions(self, body: Body, caller: Caller = NOBODY) -> Reply | StreamedReply:
        """`/v1/completions`; several prompts are asked at the same time."""
        check_request("completions", body)
        self._asker.check_model(body)
        asks = [
            await self._traffic.asked(self._asker.completion(body, prompt, caller))
            for prompt in prompts_of(body)
        ]
        wanted = Wanted.of(body, fields=self.config.token_fields)
        name = asks[0].name
        if body.get("stream"):
            streams = [await self._traffic.pieces(ask, caller) for ask in asks]
            events = completion_events(streams, self.tokenizer, wanted, name=name, model=self.model)
            return StreamedReply(ending(events, streams), asks[0].headers())
        outcomes = await together([self._traffic.answer(ask, caller) for ask in asks])
        data = completion_body(self.tokenizer, outcomes, wanted, name=name)
        return self._reply(data, outcomes[0], *asks)

    async def responses(self, body: Body, caller: Caller = NOBODY) -> Reply | StreamedReply:
        """`/v1/responses`; `previous_response_id` goes on in that response's session."""
        check_request("responses", body)
        history = None
        before = previous(body)
        if before is not None:
            if caller.session not in {"", before[0]}:  # whoever may use one may not use all
                raise no_response(before[0])
            caller = Caller(before[0], caller.idempotency_key, caller.retry)
            history = await self._history(*before)
        ask = await self._traffic.asked(self._asker.chat(chat_request(body, history), caller))
        fields = self.config.token_fields
        if body.get("stream"):
            pieces = await self._traffic.pieces(ask, caller)
            events = response_events(
                pieces, self.tokenizer, body, fields=fields, name=ask.name, model=self.model
            )
            return StreamedReply(ending(events, [pieces]), ask.headers())
        outcome = await self._traffic.answer(ask, caller)
        writer = ResponsesWriter(self.tokenizer, body, outcome, fields=fields)
        return self._reply(writer.body(), outcome, ask)

    async def tokenize(self, body: Body, caller: Caller = NOBODY) -> Reply:
        """`/tokenize` in vLLM's shape; in a session, the IDs its next call would be sent."""
        if not isinstance(body, dict):
            raise ApiError("the request's body must be a JSON object")
        self._asker.check_model(body)
        if body.get("messages") is not None:
            prompt = await self._asker.prompt_of(body, caller)
            ids = prompt.token_ids.tolist()
        elif isinstance(body.get("prompt"), str):
            specials = body.get("add_special_tokens", True) is not False
            ids = self.tokenizer.encode(body["prompt"], add_special_tokens=specials)
        else:
            raise ApiError("either messages or prompt (a string) is needed", param="messages")
        names = None
        if body.get("return_token_strs"):
            convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
            names = convert(ids) if convert else [
                self.tokenizer.decode([token], skip_special_tokens=False) for token in ids
            ]  # fmt: skip
        reply = {
            "count": len(ids),
            "max_model_len": self._info.max_model_len,
            "tokens": ids,
            "token_strs": names,
        }
        return Reply(orjson.dumps(reply))

    def models(self) -> Reply:
        """`/v1/models`."""
        model = {
            "id": self.model,
            "object": "model",
            "created": 0,
            "owned_by": "rlbridge",
            "root": self._info.model,
            "parent": None,
            "max_model_len": self._info.max_model_len,
            "trainable": self._info.tokens,
        }
        return Reply(orjson.dumps({"object": "list", "data": [model]}))

    async def open_session(
        self, session: str = "", *, group_id: str = "", metadata: Body | None = None
    ) -> str:
        """Open a session, or find it; returns its ID (a new one for an empty name)."""
        return (await self._store.open(session, group_id, metadata or {})).name

    async def rollout(self, session: str) -> Rollout:
        """All calls of a session so far, retries and branches included."""
        return (await self._store.get(session)).rollout()

    async def built(self, session: str) -> Built:
        """Its training sequences."""
        return await asyncio.to_thread(build, await self.rollout(session))

    async def score(self, session: str, reward: Reward) -> None:
        """Attach a reward, which `rollout` then carries; captured like calls are."""
        found = await self._store.get(session)
        found.reward = reward
        if self._log is not None:
            self._store.record(found)
            self._log.append(session, "reward", reward_record(reward))
            await self._log.durable()

    async def end_session(self, session: str) -> None:
        """Forget a session; what was captured stays on disk."""
        await self._store.end(session)

    async def _open_log(self, stack: AsyncExitStack) -> CaptureLog | None:
        """Where calls are captured, with what is there already."""
        capture = self.config.capture
        if capture.folder is None:
            return None
        log = CaptureLog(capture.folder, capture)
        stack.push_async_callback(log.aclose)
        await asyncio.to_thread(log.recover)
        log.start()
        return log

    async def _history(self, session: str, seed: str) -> list[Mapping[str, Any]]:
        """The messages up to and with an answer."""
        found = await self._store.get(session)
        for node in reversed(found.answers):
            if node.call is not None and node.call.seed == seed:
                return node.messages()
        raise no_response(session)

    def _reply(self, data: bytes, outcome: Outcome, *asks: Ask) -> Reply:
        def lost() -> None:
            for ask in asks:
                self._talk.replays.lose(ask.session, ask.key)

        return Reply(data, outcome.headers, lost)


def _encoding(tokenizer: Any) -> Encoding | None:
    known = hasattr(tokenizer, "backend_tokenizer") or hasattr(tokenizer, "get_vocab")
    return encoding_of(tokenizer) if known else None
