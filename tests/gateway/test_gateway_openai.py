"""The openai client, unmodified, against a gateway on a real socket."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from rlbridge.contracts.codecs.engine import turns_from_reply
from rlbridge.contracts.codecs.gym import turn_from_item, turns_from_response
from rlbridge.contracts.codecs.stream import chunks_from_sse, reply_from_chunks
from rlbridge.contracts.rollout import FinishReason
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.open import open_engine
from rlbridge.errors import EngineError
from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.gateway import Gateway
from rlbridge.testing.byte_tokenizer import ByteTokenizer
from rlbridge.testing.vllm_server import VllmServer
from tests.gateway.core_kit import CALL, MODEL, TOKENIZER, TOOLS, ScriptedEngine, odd_ids, serving

ASK = [{"role": "user", "content": "What is it?"}]
RESPONSES_TOOLS = [{"type": "function", "strict": None, **TOOLS[0]["function"]}]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def url(engine: ScriptedEngine) -> AsyncIterator[str]:
    config = GatewayConfig.parse({"abort_wait_s": 0.0})
    async with serving(Gateway(engine, TOKENIZER, config)) as base:
        yield base


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/s/one/v1", api_key="unused", max_retries=0
    ) as opened:
        yield opened


async def test_a_chat_reply_is_openais_and_carries_the_tokens_gym_looks_for(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, logprobs=True,
        extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True},
    )  # fmt: skip
    body = raw.http_response.json()
    ChatCompletion.model_validate(body, strict=True)
    (turn,) = turns_from_reply(body)
    assert turn.prompt.token_ids.tolist() == engine.calls[0].prompt.token_ids.tolist()
    assert turn.sampled_ids.tolist() == [*odd_ids("All right."), TOKENIZER.eos_token_id]
    message = turn_from_item(body["choices"][0]["message"])
    assert message is not None
    assert message.token_ids.tolist() == turn.token_ids.tolist()
    assert raw.headers["x-rlbridge-session"] == "one"
    assert raw.headers["x-rlbridge-prompt"] == "rendered"


async def test_tool_calls_and_reasoning_are_read_where_the_engine_reads_none(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.append(CALL)
    reply = await client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Looking."
    assert choice.message.reasoning == "I need it."
    (call,) = choice.message.tool_calls or ()
    assert call.function.name == "lookup"
    assert call.function.arguments == '{"key": "a b", "n": 3}'


async def test_tool_call_ids_of_equal_answers_differ(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.extend([CALL, CALL])
    reply = await client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, n=2)
    calls = [choice.message.tool_calls[0].id for choice in reply.choices]
    assert len(set(calls)) == 2


async def test_a_stream_says_what_the_whole_reply_says(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.extend([CALL, CALL])
    whole = await client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
    async with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=TOOLS, stream_options={"include_usage": True}
    ) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    streamed = final.choices[0].message
    assert streamed.content == whole.choices[0].message.content
    assert streamed.tool_calls[0].function.arguments == '{"key": "a b", "n": 3}'
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage == whole.usage
    assert streamed.generation_token_ids == whole.choices[0].message.generation_token_ids


async def test_a_streams_chunks_make_the_turn_of_a_whole_reply(
    url: str, engine: ScriptedEngine
) -> None:
    body = {"messages": ASK, "stream": True, "logprobs": True, "return_token_ids": True}
    async with httpx.AsyncClient() as http:
        raw = await http.post(f"{url}/v1/chat/completions", json=body)
    assert raw.headers["content-type"].startswith("text/event-stream")
    (turn,) = turns_from_reply(reply_from_chunks(chunks_from_sse(raw.text.splitlines())))
    assert turn.prompt.token_ids.tolist() == engine.calls[0].prompt.token_ids.tolist()


async def test_several_answers_stream_as_several_choices(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=MODEL, messages=ASK, n=3, stream=True)
    texts = {0: "", 1: "", 2: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == dict.fromkeys(range(3), "All right.")


async def test_responses_are_openais_and_carry_tokens_on_the_last_item(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.append(CALL)
    raw = await client.responses.with_raw_response.create(
        model=MODEL, input="Hi", instructions="Be brief.", tools=RESPONSES_TOOLS,
        include=["message.output_text.logprobs"],
    )  # fmt: skip
    body = raw.http_response.json()
    Response.model_validate(body, strict=True)
    assert [item["type"] for item in body["output"]] == ["reasoning", "message", "function_call"]
    (turn,) = turns_from_response(body)
    assert "generation_token_ids" in body["output"][-1]
    assert turn.sampled_ids.tolist()[:-1] == odd_ids(CALL)


async def test_a_previous_response_is_gone_on_from_token_by_token(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.append(CALL)
    fields: dict[str, Any] = {"instructions": "Be brief.", "tools": RESPONSES_TOOLS}
    first = await client.responses.create(model=MODEL, input="Hi", **fields)
    output = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "3"}
    raw = await client.responses.with_raw_response.create(
        model=MODEL, previous_response_id=first.id, input=[output], **fields
    )
    assert raw.headers["x-rlbridge-prompt"] == "bridged"
    before = [*engine.calls[0].prompt.token_ids, *odd_ids(CALL)]
    assert engine.calls[1].prompt.token_ids[: len(before)].tolist() == before


@pytest.mark.parametrize("answer", [CALL, "Just text.", "<think>\nhm\n</think>\n\nText."])
async def test_a_streamed_response_ends_in_the_response_that_was_streamed(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, answer: str
) -> None:
    engine.answers.append(answer)
    async with client.responses.stream(model=MODEL, input="Hi", tools=RESPONSES_TOOLS) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == [
        *range(len(events))
    ]
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == final.output_text
    added = [e.item.id for e in events if e.type == "response.output_item.added"]
    assert added == [item.id for item in final.output]
    assert final.output[-1].generation_token_ids[:-1] == odd_ids(answer)


async def test_completions_take_text_ids_and_several_of_both(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    ids = TOKENIZER.encode("What is", add_special_tokens=False)
    for prompt, choices in (("What is", 1), (ids, 1), (["a", "b"], 2), ([ids, ids], 2)):
        raw = await client.completions.with_raw_response.create(
            model=MODEL, prompt=prompt, logprobs=1, extra_body={"return_token_ids": True}
        )
        body = raw.http_response.json()
        Completion.model_validate(body, strict=True)
        assert len(body["choices"]) == choices
    assert engine.calls[0].prompt.token_ids.tolist() == engine.calls[1].prompt.token_ids.tolist()


async def test_a_text_that_goes_on_from_a_completion_keeps_its_tokens(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    first = await client.completions.create(model=MODEL, prompt="What is", stream=False)
    text = "What is" + first.choices[0].text
    stream = await client.completions.create(model=MODEL, prompt=text + " And?", stream=True)
    assert "".join([c.choices[0].text async for c in stream if c.choices]) == "All right."
    begin = [*engine.calls[0].prompt.token_ids, *odd_ids("All right.")]
    assert engine.calls[1].prompt.token_ids[: len(begin)].tolist() == begin


async def test_models_and_tokenize_answer_inside_and_outside_v1(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        models = (await http.get("/v1/models")).json()
        assert models["data"][0]["id"] == MODEL
        assert models["data"][0]["max_model_len"] == 100_000
        for path in ("/tokenize", "/v1/tokenize", "/s/two/tokenize", "/s/two/v1/tokenize"):
            reply = (await http.post(path, json={"messages": ASK})).json()
            assert reply["count"] == len(reply["tokens"])
            text = TOKENIZER.apply_chat_template(ASK, add_generation_prompt=True, tokenize=False)
            assert reply["tokens"] == TOKENIZER.encode(text, add_special_tokens=False)
        reply = await http.post("/tokenize", json={"prompt": "a b", "return_token_strs": True})
        assert reply.json()["token_strs"] == TOKENIZER.convert_ids_to_tokens(reply.json()["tokens"])


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": 3}]}, openai.BadRequestError,
         "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, openai.BadRequestError,
         "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url",
          "image_url": {"url": "x"}}]}]}, openai.BadRequestError, "messages"),
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"top_logprobs": 5, "logprobs": True}, openai.BadRequestError, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools[0].function"),
        ({"n": 0}, openai.BadRequestError, "n"),
        ({"n": 500}, openai.BadRequestError, "n"),
        ({"extra_body": {"continue_final_message": True}}, openai.BadRequestError,
         "continue_final_message"),
    ],
)  # fmt: skip
async def test_a_wrong_request_is_told_which_field_is_wrong(
    client: openai.AsyncOpenAI, fields: dict[str, Any], error: type[openai.APIStatusError],
    param: str,
) -> None:  # fmt: skip
    with pytest.raises(error) as told:
        await client.chat.completions.create(**{"model": MODEL, "messages": ASK, **fields})
    assert told.value.param == param
    assert set(told.value.body) == {"message", "type", "param", "code"}


async def test_an_engines_reason_reaches_the_client(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.append(EngineError("no such LoRA", status=400, code="bad_lora", param="lora"))
    with pytest.raises(openai.BadRequestError, match="no such LoRA") as told:
        await client.chat.completions.create(model=MODEL, messages=ASK)
    assert (told.value.code, told.value.param) == ("bad_lora", "lora")
    engine.answers.append(EngineError("nobody listens", retryable=True))
    with pytest.raises(openai.InternalServerError) as told_again:
        await client.chat.completions.create(model=MODEL, messages=ASK)
    assert told_again.value.status_code == 503
    assert told_again.value.response.headers["retry-after"] == "1"


async def test_a_stream_that_fails_before_its_first_token_has_a_status(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.append(EngineError("too hot", status=400))
    with pytest.raises(openai.BadRequestError, match="too hot"):
        await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)


async def test_aborted_answers_are_asked_for_again_and_never_given_out(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers.extend([FinishReason.ABORT, FinishReason.ABORT, "At last."])
    reply = await client.chat.completions.create(model=MODEL, messages=ASK)
    assert reply.choices[0].message.content == "At last."
    engine.answers.extend([FinishReason.ABORT] * 3)
    with pytest.raises(openai.InternalServerError) as told:
        await client.chat.completions.create(model=MODEL, messages=ASK)
    assert told.value.code == "aborted"
    engine.answers.extend([FinishReason.ABORT, "Streamed."])
    stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    texts = [c.choices[0].delta.content or "" async for c in stream if c.choices]
    assert "".join(texts) == "Streamed."


async def test_a_full_context_is_the_400_that_agents_take_for_length(
    engine: ScriptedEngine,
) -> None:
    engine.max_model_len = 10
    async with serving(Gateway(engine, TOKENIZER)) as base, httpx.AsyncClient() as http:
        reply = await http.post(f"{base}/v1/chat/completions", json={"messages": ASK})
    assert reply.status_code == 400
    assert "context length" in reply.text
    assert reply.json()["error"]["code"] == "context_length_exceeded"


async def test_an_engine_of_text_is_passed_through_and_marked(engine: ScriptedEngine) -> None:
    engine.tokens = False
    async with serving(Gateway(engine, TOKENIZER)) as base, httpx.AsyncClient() as http:
        reply = await http.post(
            f"{base}/s/t/v1/chat/completions", json={"messages": ASK, "top_k": 5}
        )
        assert reply.headers["x-rlbridge-trainable"] == "false"
        assert "prompt_token_ids" not in reply.json()["choices"][0]["message"]
        rollout = (await http.get(f"{base}/s/t/rollout")).json()
    assert rollout["masked"] == "tokens_lost"
    assert engine.calls[0].prompt is None
    assert engine.calls[0].sampling["top_k"] == 5
    assert engine.calls[0].chat.messages[0]["content"] == "What is it?"


@pytest.mark.parametrize(
    ("kind", "routes"),
    [
        ("vllm", {"chat", "completions"}),
        ("vllm", {"completions"}),
        ("vllm", {"generate"}),
        ("nemo_rl", {"chat"}),
    ],
    ids=["token_chat", "completions", "generate", "nemo_rl"],
)
async def test_a_conversation_is_one_sequence_over_every_wire(kind: Any, routes: set[str]) -> None:
    """Streamed and whole by turns, through the HTTP engine that users get."""
    async with VllmServer(kind=kind, routes=frozenset(routes)) as upstream:
        config = PolicyConfig(url=upstream.url, model=upstream.model)
        async with (
            aclosing(open_engine(config)) as engine,
            serving(Gateway(engine, ByteTokenizer())) as url,
            openai.AsyncOpenAI(base_url=f"{url}/s/s/v1", api_key="unused") as client,
        ):
            history: list[Any] = [ASK[0]]
            for turn in range(4):
                fields = {"model": "tiny", "temperature": 1.0, "top_p": 1.0, "max_tokens": 30}
                if turn % 2:
                    async with client.chat.completions.stream(messages=history, **fields) as stream:
                        message = (await stream.get_final_completion()).choices[0].message
                else:
                    reply = await client.chat.completions.create(messages=history, **fields)
                    message = reply.choices[0].message
                history += [{"role": "assistant", "content": message.content}, ASK[0]]
            async with httpx.AsyncClient() as http:
                rollout = (await http.get(f"{url}/s/s/rollout")).json()
    assert rollout["calls"] == 4
    assert len(rollout["sequences"]) == 1


async def test_unknown_routes_methods_and_bodies_answer_in_openais_shape(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as http:
        for reply, status in (
            (await http.post("/v1/nothing", json={}), 404),
            (await http.get("/v1/chat/completions"), 405),
            (await http.post("/v1/chat/completions", content=b"{"), 400),
            (await http.post("/v1/chat/completions", content=b"[]"), 400),
            (await http.post("/s", content=b'{"nothing": 1}'), 400),
            (await http.get("/s/unknown/rollout"), 404),
            (await http.post("/s/..%2Fx/v1/chat/completions", json={"messages": ASK}), 404),
            (await http.post("/s/.x/v1/chat/completions", json={"messages": ASK}), 400),
        ):
            assert reply.status_code == status, reply.text
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
