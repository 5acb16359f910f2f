"""One server over HTTP: which wire, which tokens, which errors; against the fake."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from rlbridge.contracts.rollout import FinishReason
from rlbridge.contracts.tokens import LogprobsMode, PromptSpan, Provenance
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import ChatContext, EngineCall, Generation
from rlbridge.engines.http_engine import HttpEngine
from rlbridge.engines.open import open_engine
from rlbridge.errors import ConfigError, EngineError
from rlbridge.testing import ByteTokenizer, Exact, Parsers, VllmServer
from rlbridge.testing.exchange import Exchange, LocalServer

TOKENIZER = ByteTokenizer()
MESSAGES = [{"role": "user", "content": "What is 1+1?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    }
]
ALL = frozenset({"chat", "completions", "generate"})
WIRES = ["token_chat", "generate", "completions"]
CALLED = '<think>hm</think>\n<tool_call>\n{"name": "add", "arguments": {"a":  1}}\n</tool_call>'


def prompt_of(messages: Any = MESSAGES) -> PromptSpan:
    return PromptSpan(TOKENIZER.apply_chat_template(messages, add_generation_prompt=True))


def chat_call(**fields: Any) -> EngineCall:
    chat = fields.pop("chat", ChatContext(MESSAGES))
    return EngineCall(prompt_of(), {"temperature": 1.0, "max_tokens": 200}, chat=chat, **fields)


@asynccontextmanager
async def engine(server: VllmServer, **config: Any) -> AsyncIterator[HttpEngine]:
    async with server:
        connected = HttpEngine(server.url, PolicyConfig(url=server.url, **config))
        try:
            yield connected
        finally:
            await connected.aclose()


async def whole(connected: HttpEngine, call: EngineCall) -> tuple[Generation, str, list[Any]]:
    """The streamed answer, and what its pieces said."""
    text, messages, done = "", [], []
    async for delta in connected.stream(call):
        text += delta.text
        messages += [delta.message] if delta.message else []
        done += [delta.done] if delta.done else []
    assert len(done) == 1
    return done[0], text, messages


@pytest.mark.parametrize(
    ("server", "wire"),
    [
        (VllmServer(parsers=Parsers(tools=True, reasoning=True)), "token_chat"),
        (VllmServer(routes=ALL, parsers=Parsers(tools=True)), "token_chat"),
        (VllmServer(routes=ALL), "generate"),
        (VllmServer(routes=ALL, text_mode=False), "completions"),
        (VllmServer(), "completions"),
        (VllmServer(token_chat=False), "completions"),
        (VllmServer(routes=frozenset({"chat"})), "token_chat"),
        (VllmServer(kind="nemo_rl", routes=frozenset({"chat"})), "nemo_rl"),
        (VllmServer(kind="text", routes=frozenset({"chat"})), "text"),
        (VllmServer(routes=frozenset({"chat"}), token_chat=False), "text"),
    ],
)
async def test_the_best_way_that_is_proven_is_chosen(server: VllmServer, wire: str) -> None:
    async with engine(server, model="tiny") as connected:
        info = await connected.info()
        probes = len(server.generations)
        assert await connected.info() == info
        assert len(server.generations) == probes
    assert info.wire == wire
    assert info.tokens == (wire != "text")
    assert info.model == "tiny"
    assert info.parses == (server.parsers.tools or wire == "text")
    assert all(body.get("max_tokens", 1) == 1 for body in server.generations)


async def test_a_server_that_ignores_the_prompts_ids_is_not_believed() -> None:
    server = VllmServer(routes=frozenset({"chat"}), token_chat=False)
    async with engine(server, wire="token_chat") as connected:
        with pytest.raises(ConfigError, match="doesn't offer wire: token_chat with exact tokens"):
            await connected.info()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("mode", ["raw", "processed"])
async def test_what_logprobs_are_of_is_found_out_and_recorded(wire: str, mode: Any) -> None:
    async with engine(VllmServer(routes=ALL, logprobs_mode=mode), wire=wire) as connected:
        (answer,) = await connected.generate(chat_call())
    assert answer.turn is not None
    assert answer.turn.logprobs_mode is LogprobsMode(mode)


async def test_every_wire_gives_the_same_tokens_and_logprobs_whole_and_streamed() -> None:
    prompt = prompt_of()
    marked = PromptSpan(prompt.token_ids, [Provenance.SAMPLED] * len(prompt))
    call = EngineCall(marked, {"temperature": 0.0, "max_tokens": 50}, chat=ChatContext(MESSAGES))
    seen = []
    for wire in WIRES:
        async with engine(VllmServer(routes=ALL), wire=wire) as connected:
            (answer,) = await connected.generate(call)
            streamed, text, _ = await whole(connected, call)
        assert answer.turn is not None
        assert answer.turn.prompt is marked
        assert answer.turn.sampling == {"temperature": 0.0, "max_tokens": 50}
        assert streamed.turn is not None
        assert streamed.turn.generation == answer.turn.generation
        assert text == streamed.text == answer.text == TOKENIZER.decode(
            answer.turn.sampled_ids[:-1]
        )  # fmt: skip
        assert answer.finish is FinishReason.STOP
        assert answer.prompt_tokens == len(prompt)
        seen.append(answer.turn)
    for turn in seen[1:]:
        assert turn.sampled_ids.tolist() == seen[0].sampled_ids.tolist()
        np.testing.assert_array_equal(turn.logprobs, seen[0].logprobs)


async def test_generate_without_text_mode_asks_the_server_for_the_text() -> None:
    for stop in (None, ["lo"]):
        call = EngineCall(prompt_of(), {"stop": stop, "max_tokens": 50}, chat=ChatContext(MESSAGES))
        texts = []
        for text_mode in (True, False):
            server = VllmServer(routes=ALL, text_mode=text_mode, answers="Hello")
            async with engine(server, wire="generate") as connected:
                (answer,) = await connected.generate(call)
                streamed, _, _ = await whole(connected, call)
            texts += [answer.text, streamed.text]
        assert texts == (["Hello"] * 4 if stop is None else ["Hel"] * 4)


async def test_the_engines_parsers_are_used_where_it_has_them() -> None:
    server = VllmServer(answers=CALLED, parsers=Parsers(tools=True, reasoning=True))
    chat = ChatContext(MESSAGES, TOOLS, "auto", {"parallel_tool_calls": True, "logprobs": False})
    async with engine(server) as connected:
        (answer,) = await connected.generate(chat_call(chat=chat))
        streamed, text, pieces = await whole(connected, chat_call(chat=chat))
    assert answer.message is not None
    assert answer.message["reasoning"] == "hm"
    assert answer.message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert answer.finish is FinishReason.TOOL_CALLS
    assert streamed.message is not None
    assert streamed.message["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert text == ""
    assert any("tool_calls" in piece for piece in pieces)
    body = server.generations[-1]
    assert body["tools"] == TOOLS
    assert body["parallel_tool_calls"] is True
    assert body["logprobs"] is True
    assert body["messages"] != MESSAGES  # a body grows by its prompt alone


async def test_text_that_is_to_be_parsed_here_comes_without_special_tokens() -> None:
    for wire in WIRES:
        server = VllmServer(routes=ALL, answers=[*b"a<", 258, *CALLED.encode()])
        async with engine(server, wire=wire) as connected:
            (answer,) = await connected.generate(chat_call(chat=ChatContext(MESSAGES, TOOLS)))
        assert answer.message is None
        assert answer.text == f"a<{CALLED}"


@pytest.mark.parametrize("wire", WIRES)
async def test_what_is_sent_is_the_calls_sampling_without_the_traps(wire: str) -> None:
    server = VllmServer(routes=ALL, answers="x" * 300, max_model_len=100)
    prompt = prompt_of()
    sampling = {
        "temperature": 0.7, "top_p": None, "seed": 7, "max_completion_tokens": 5000,
        "stop": ["q"], "top_k": 5,
    }  # fmt: skip
    async with engine(server, wire=wire) as connected:
        (answer,) = await connected.generate(EngineCall(prompt, sampling, cache_salt="a"))
    body = server.generations[-1]
    sent = body.get("sampling_params", body)
    assert "seed" not in sent
    assert "top_p" not in sent
    assert (sent["temperature"], sent["stop"], sent["top_k"]) == (0.7, ["q"], 5)
    assert sent["max_tokens"] == 100 - len(prompt)
    assert body["cache_salt"] == "a"
    assert answer.finish is FinishReason.LENGTH
    assert answer.turn is not None
    assert len(answer.turn.sampled_ids) == 100 - len(prompt)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_chat_without_a_limit_may_use_all_the_context(wire: str) -> None:
    server = VllmServer(routes=ALL, answers="x" * 50)
    async with engine(server, wire=wire) as connected:
        (answer,) = await connected.generate(EngineCall(prompt_of(), chat=ChatContext(MESSAGES)))
    assert answer.text == "x" * 50


@pytest.mark.parametrize("wire", WIRES)
async def test_several_answers_to_one_call(wire: str) -> None:
    async with engine(VllmServer(routes=ALL), wire=wire) as connected:
        answers = await connected.generate(chat_call(n=3))
        with pytest.raises(EngineError, match="n=1"):
            await whole(connected, chat_call(n=2))
    turns = [answer.turn for answer in answers]
    assert len({turn.call_id for turn in turns if turn is not None}) == 3
    assert len({tuple(turn.sampled_ids) for turn in turns if turn is not None}) == 3


@pytest.mark.parametrize("wire", WIRES)
async def test_a_clients_response_format_reaches_the_engine_and_token_fields_do_not(
    wire: str, vllm_server: VllmServer
) -> None:
    vllm_server.routes = ALL
    schema = {"type": "object"}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    extra = {
        "response_format": asked,
        "kv_transfer_params": {"prompt_token_ids": [1]},
        "echo": True,
    }
    connected = HttpEngine(vllm_server.url, PolicyConfig(url=vllm_server.url, wire=wire))
    (answer,) = await connected.generate(chat_call(chat=ChatContext(MESSAGES, extra=extra)))
    await connected.aclose()
    body = vllm_server.generations[-1]
    assert answer.prompt_tokens == len(prompt_of())
    assert "echo" not in body
    if wire == "generate":
        assert body["sampling_params"]["structured_outputs"] == {"json": schema}
    else:
        assert body["response_format"] == asked


@pytest.mark.parametrize("wire", WIRES)
async def test_an_aborted_answer_says_so(wire: str) -> None:
    server = VllmServer(routes=ALL, answers="x" * 10)
    async with engine(server, wire=wire) as connected:
        await connected.info()
        server.faults = deque(["abort", "abort"])
        (answer,) = await connected.generate(chat_call())
        server.fake._answers = [256]  # half of one token is none
        (empty,) = await connected.generate(chat_call())
    assert (answer.finish, answer.text) == (FinishReason.ABORT, "x" * 5)
    assert (empty.finish, empty.turn) == (FinishReason.ABORT, None)


@pytest.mark.parametrize(
    ("fault", "status", "retryable", "says"),
    [
        ("status_500", 500, True, "Internal Server Error"),
        ("status_503", 503, True, "Service Unavailable"),
        ("status_429", 429, True, "Too Many Requests"),
        ("truncated_json", 200, True, "no JSON"),
        ("reset_mid_body", 0, True, "http"),
        ("lost_logprobs", 200, True, "sampled . tokens|sampled .. tokens"),
        ("other_prompt", 200, True, "prompt tokens"),
    ],
)
async def test_a_failed_call_says_whether_the_same_may_be_sent_again(
    fault: str, status: int, retryable: bool, says: str
) -> None:
    server = VllmServer()
    async with engine(server) as connected:
        await connected.info()
        server.faults = deque([fault])
        with pytest.raises(EngineError, match=says) as caught:
            await connected.generate(chat_call())
        assert (caught.value.status, caught.value.retryable) == (status, retryable)
        assert caught.value.url == f"{server.url}/v1/completions"
        await connected.generate(chat_call())


@pytest.mark.parametrize("fault", ["reset_mid_body", "reset", "status_503"])
async def test_a_stream_that_breaks_is_an_error_and_never_a_short_answer(fault: str) -> None:
    server = VllmServer(answers="x" * 10)
    async with engine(server) as connected:
        await connected.info()
        server.faults = deque([fault] * 3)
        with pytest.raises(EngineError) as caught:
            await whole(connected, chat_call())
        assert caught.value.retryable


async def test_refusals_keep_the_engines_reason_and_are_final() -> None:
    server = VllmServer()
    async with engine(server) as connected:
        call = EngineCall(PromptSpan([1, 5000]), {"max_tokens": 3})
        with pytest.raises(EngineError, match="Token id 5000 is out of vocabulary") as caught:
            await connected.generate(call)
        assert (caught.value.status, caught.value.code) == (400, "BadRequestError")
        assert not caught.value.retryable
        sent = len(server.requests)
        with pytest.raises(EngineError, match="maximum context length is 2048") as caught:
            await connected.generate(EngineCall(PromptSpan([65] * 2048), {"max_tokens": 3}))
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(EngineError, match="has none"):
            await connected.generate(EngineCall(None, chat=ChatContext(MESSAGES)))
        assert len(server.requests) == sent


async def test_a_closed_kept_alive_connection_is_opened_again() -> None:
    server = VllmServer()
    async with engine(server) as connected:
        await connected.info()
        server.faults = deque(["reset", "reset"])
        (answer,) = await connected.generate(chat_call())
    assert answer.turn is not None


async def test_a_cancelled_call_ends_upstream() -> None:
    server = VllmServer(answers="x" * 200)
    async with engine(server) as connected:
        await connected.info()
        server.token_s = 0.02
        before = len(server.generations)
        task = asyncio.create_task(connected.generate(chat_call()))
        async with asyncio.timeout(60):
            while len(server.generations) == before:  # noqa: ASYNC110 (a list makes no noise)
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = connected.stream(chat_call())
        async for _ in stream:
            break
        await stream.aclose()
        for _ in range(6000):
            if server.left == 2:
                break
            await asyncio.sleep(0.01)
    assert server.left == 2


async def test_a_key_is_sent_and_never_told() -> None:
    key = "sk-hidden-0123456789"
    server = VllmServer(api_key=key)
    async with engine(server, api_key=key) as connected:
        assert (await connected.info()).tokens
    server = VllmServer(api_key="other", answers=f"the key is {key}")
    async with engine(server, api_key=key) as connected:
        with pytest.raises(EngineError, match="401") as caught:
            await connected.info()
    assert key not in f"{caught.value!r} {caught.value.__dict__}"
    assert key not in repr(PolicyConfig(url="http://a", api_key=key))


async def test_nobody_there_is_an_error_after_the_deadline() -> None:
    config = PolicyConfig(url="http://127.0.0.1:9", ready_timeout_s=0.3)
    connected = HttpEngine("http://127.0.0.1:9", config)
    with pytest.raises(EngineError, match=r"waited 0\.3 s for it to come up") as caught:
        await connected.info()
    assert caught.value.retryable
    await connected.aclose()


async def test_a_server_that_comes_up_later_is_waited_for() -> None:
    server = VllmServer()
    async with server:
        url = server.url
    connected = HttpEngine(url, PolicyConfig(url=url))
    task = asyncio.create_task(connected.info())
    await asyncio.sleep(0.2)
    await server.start()
    try:
        assert (await task).wire == "completions"
    finally:
        await connected.aclose()
        await server.stop()


async def test_weight_versions_are_on_every_span() -> None:
    for wire in WIRES:
        server = VllmServer(routes=ALL)
        server.fake.version = "7"
        async with engine(server, wire=wire) as connected:
            assert (await connected.info()).policy_version == "7"
            (answer,) = await connected.generate(chat_call())
            assert answer.policy_version == "7"
            assert answer.turn is not None
            assert answer.turn.generation[0].policy_version == "7"
            server.fake.version = "8"
            assert (await connected.health()).version == "8"
            connected.use_version("8")
            (answer,) = await connected.generate(chat_call())
            assert answer.policy_version == "8"


@pytest.mark.parametrize("message_fields", [False, True])
async def test_nemo_rls_server_gets_its_sampling_and_its_prefix(message_fields: bool) -> None:
    server = VllmServer(
        kind="nemo_rl",
        routes=frozenset({"chat"}),
        token_chat=False,
        exact=Exact(0.8, 0.95),
        message_fields=message_fields,
        answers=["Hi", "Bye"],
    )
    async with engine(server, model="tiny", temperature=0.8, top_p=0.95) as connected:
        assert (await connected.info()).wire == "nemo_rl"
        (first,) = await connected.generate(EngineCall(prompt_of(), chat=ChatContext(MESSAGES)))
        assert first.turn is not None
        assert first.turn.prompt == prompt_of()
        room = 2048 - len(prompt_of())
        assert first.turn.sampling == {"temperature": 0.8, "top_p": 0.95, "max_tokens": room}
        assert first.turn.logprobs_mode is LogprobsMode.PROCESSED
        tail = TOKENIZER.encode("\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n")
        known = first.turn.token_ids.tolist()
        sources = [0] * len(first.turn.prompt) + [1] * len(first.turn.sampled_ids) + [2] * len(tail)
        history = [
            *MESSAGES,
            {"role": "assistant", "content": "something else", "reasoning_content": "Hm"},
            {"role": "user", "content": "And?"},
        ]
        following = EngineCall(PromptSpan([*known, *tail], sources), chat=ChatContext(history))
        (second,) = await connected.generate(following)
        with pytest.raises(EngineError, match=r"temperature is 1.0, but the trainer allows 0.8"):
            await connected.generate(EngineCall(prompt_of(), {"temperature": 1.0}))
        with pytest.raises(EngineError, match="top_k is 5, but NeMo-RL allows none"):
            await connected.generate(EngineCall(prompt_of(), {"top_k": 5}))
    assert second.turn is not None
    assert second.turn.prompt is following.prompt
    assert second.text == "Bye"
    asked = server.generations[-1]
    assert asked["required_prefix_token_ids"] == known
    # What was said travels in its tokens; reasoning that a template drops would move the splice.
    assert asked["messages"] == [history[0], {"role": "assistant", "content": "-"}, history[2]]


async def test_nemo_rls_server_is_prompted_exactly_where_its_vllm_can() -> None:
    server = VllmServer(kind="nemo_rl", routes=frozenset({"chat"}))
    async with engine(server, model="tiny") as connected:
        (answer,) = await connected.generate(EngineCall(PromptSpan([65, 66, 67])))
        streamed, _, _ = await whole(connected, EngineCall(PromptSpan([65, 66, 67])))
    assert answer.turn is not None
    assert answer.turn.prompt.token_ids.tolist() == [65, 66, 67]
    assert streamed.turn is not None
    assert server.generations[-1]["temperature"] == 1.0


async def test_a_two_route_server_needs_the_models_name() -> None:
    server = VllmServer(kind="nemo_rl", routes=frozenset({"chat"}))
    async with engine(server) as connected:
        with pytest.raises(ConfigError, match=r"set model .*policy.model_name"):
            await connected.info()


async def test_a_model_the_server_has_not_is_refused_with_those_it_has() -> None:
    async with engine(VllmServer(), model="other") as connected:
        with pytest.raises(ConfigError, match="serves tiny, not the model 'other'"):
            await connected.info()


async def test_a_server_of_several_models_needs_one_named() -> None:
    class Several(LocalServer):
        async def answer(self, exchange: Exchange) -> bool:
            cards = [{"id": name} for name in ("a", "b")]
            return await exchange.send(200, {"data": cards})

    async with Several() as server:
        connected = HttpEngine(server.url, PolicyConfig(url=server.url))
        with pytest.raises(ConfigError, match="serves a, b: set model to one of them"):
            await connected.info()
        await connected.aclose()


async def test_an_engine_of_text_alone_is_marked_and_gives_no_turn() -> None:
    server = VllmServer(kind="text", routes=frozenset({"chat"}), answers="Hello")
    async with engine(server) as connected:
        assert not (await connected.info()).tokens
        (answer,) = await connected.generate(
            EngineCall(None, {"seed": 7, "max_tokens": 9}, chat=ChatContext(MESSAGES))
        )
        streamed, _, pieces = await whole(
            connected, EngineCall(None, chat=ChatContext(MESSAGES))
        )  # fmt: skip
    assert (answer.turn, answer.text) == (None, "Hello")
    assert answer.message == {"role": "assistant", "content": "Hello"}
    assert "".join(piece.get("content", "") for piece in pieces) == "Hello" == streamed.text
    assert any(body.get("seed") == 7 for body in server.generations)


async def test_a_nemo_rl_server_tells_its_context_and_too_long_a_prompt_is_not_sent() -> None:
    server = VllmServer(kind="nemo_rl", routes=frozenset({"chat"}), max_model_len=100)
    async with engine(server, model="tiny") as connected:
        assert (await connected.info()).max_model_len == 100
        asked = len(server.generations)
        for length in (100, 101):  # the server would answer them with a bare 500
            with pytest.raises(EngineError, match="maximum context length is 100") as caught:
                await connected.generate(EngineCall(PromptSpan([65] * length)))
            assert caught.value.code == "context_length_exceeded"
        assert len(server.generations) == asked
        await connected.generate(EngineCall(PromptSpan([65] * 60), {"max_tokens": 500}))
    assert server.generations[-1]["max_tokens"] == 40


async def test_a_nemo_rl_server_of_other_sampling_is_named_at_once() -> None:
    server = VllmServer(kind="nemo_rl", routes=frozenset({"chat"}), exact=Exact(0.8, 0.95))
    async with server:
        pool = open_engine(PolicyConfig(url=server.url, model="tiny", temperature=0.8))
        with pytest.raises(ConfigError, match=r"refuses to sample with temperature 0.8, top_p 1:"):
            await pool.info()
        await pool.aclose()


async def test_an_exception_nobody_caught_points_to_the_servers_log() -> None:
    class Broken(LocalServer):
        async def answer(self, exchange: Exchange) -> bool:
            return await exchange.send(500, b"Internal Server Error", "text/plain")

    async with Broken() as server:
        connected = HttpEngine(server.url, PolicyConfig(url=server.url))
        with pytest.raises(EngineError, match=r"500: Internal Server Error \(its log has"):
            await connected.ask()
        await connected.aclose()
