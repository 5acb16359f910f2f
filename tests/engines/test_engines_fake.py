"""The fake vLLM answers as the real one did: the same fields, types and errors."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rlbridge.contracts.codecs.engine import turns_from_reply
from rlbridge.contracts.codecs.stream import chunks_from_sse, reply_from_chunks
from rlbridge.testing import VllmServer
from tests.engines.shapes import differences, shape

CAPTURES = Path(__file__).parents[1] / "contracts" / "captures"
HERE = Path(__file__).parent / "captures"
PROMPT = [104, 105, 257, 65]
MESSAGES = [{"role": "user", "content": "Hi"}]


async def ask(server: VllmServer, path: str, body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(server.url + path, json=body) as r:
        if r.content_type == "text/event-stream":
            return r.status, (await r.text()).splitlines()
        return r.status, await r.json()


def real(name: str) -> Any:
    home = HERE if (HERE / f"vllm_{name}.json").exists() else CAPTURES
    return json.loads((home / f"vllm_{name}.json").read_text(encoding="utf-8"))


def asked(name: str) -> tuple[str, dict[str, Any]]:
    """A captured request, with IDs that the byte tokenizer has."""
    request = real(name)["request"]
    body = json.loads(json.dumps(request["body"]))
    for holder in (body, body.get("kv_transfer_params") or {}):
        for key in ("prompt", "token_ids", "prompt_token_ids", "tokens"):
            if key in holder and holder[key] and isinstance(holder[key][0], int):
                holder[key] = [token % 256 for token in holder[key]]
    return request["path"], body


def server() -> VllmServer:
    return VllmServer(routes=frozenset({"chat", "completions", "generate"}))


@pytest.mark.parametrize(
    "name",
    [
        "chat_plain", "chat_logprobs", "chat_return_token_ids", "chat_full_rl", "chat_n2",
        "chat_kv_prompt_token_ids", "chat_logprobs_tokens_as_ids", "completions_token_ids",
        "completions_token_ids_as_ids", "generate", "generate_text_mode", "tokenize_messages",
        "detokenize",
    ],
)  # fmt: skip
async def test_replies_have_the_fields_of_the_captured_ones(name: str) -> None:
    path, body = asked(name)
    async with server() as fake:
        status, reply = await ask(fake, path, body)
    assert status == real(name)["status"]
    assert differences(shape(real(name)["response"]), shape(reply)) == []


@pytest.mark.parametrize(
    "name", ["chat_stream_plain", "chat_stream_token_ids", "completions_stream", "generate_stream"]
)
async def test_streams_have_the_fields_of_the_captured_ones(name: str) -> None:
    path, body = asked(name)
    async with server() as fake:
        _, lines = await ask(fake, path, body)
    theirs, ours = chunks_from_sse(real(name)["response"]), chunks_from_sse(lines)
    for number in (0, 1, -1):
        left = differences(shape(theirs[number]), shape(ours[number]))
        # vLLM puts its fingerprint on some of the chunks.
        assert [line for line in left if "system_fingerprint" not in line] == []


@pytest.mark.parametrize("name", ["err_unknown_model", "err_token_out_of_vocab", "chat_tools"])
async def test_refusals_are_vllms(name: str) -> None:
    request = real(name)["request"]
    async with server() as fake:
        status, reply = await ask(fake, request["path"], request["body"])
    assert status == real(name)["status"]
    theirs = real(name)["response"]
    reply["error"]["message"] = reply["error"]["message"].replace("rlbridge", "")
    assert reply == theirs


async def test_a_prompt_beyond_the_context_is_refused_as_vllm_does() -> None:
    async with VllmServer(max_model_len=8) as fake:
        status, reply = await ask(fake, "/v1/completions", {"prompt": [65] * 9, "max_tokens": 1})
    theirs = real("err_completions_too_long")["response"]["error"]
    assert status == 400
    assert reply["error"]["param"] == theirs["param"]
    assert "maximum context length is" in reply["error"]["message"]
    assert "maximum context length is" in theirs["message"]


async def test_one_prompt_gives_the_same_tokens_on_every_wire_and_another_others() -> None:
    async with server() as fake:
        bodies = [
            (
                "/v1/chat/completions",
                {
                    "messages": MESSAGES,
                    "kv_transfer_params": {"prompt_token_ids": PROMPT},
                    "logprobs": True,
                    "return_token_ids": True,
                },
            ),
            (
                "/v1/completions",
                {"prompt": PROMPT, "logprobs": 0, "return_token_ids": True, "max_tokens": 100},
            ),
            (
                "/inference/v1/generate",
                {"token_ids": PROMPT, "sampling_params": {"logprobs": 0, "max_tokens": 100}},
            ),
        ]
        turns = []
        for path, body in bodies:
            (turn,) = turns_from_reply((await ask(fake, path, body))[1], request=body)
            _, lines = await ask(fake, path, body | {"stream": True})
            reply = reply_from_chunks(chunks_from_sse(lines))
            (streamed,) = turns_from_reply(reply, request=body)
            assert streamed.generation == turn.generation
            turns.append(turn)
        other = bodies[1][1] | {"prompt": [*PROMPT, 66]}
        (different,) = turns_from_reply((await ask(fake, "/v1/completions", other))[1])
    chat, completion, generated = turns
    assert chat.prompt == completion.prompt == generated.prompt
    assert chat.sampled_ids.tolist() == completion.sampled_ids.tolist()
    assert chat.logprobs.tolist() == generated.logprobs.tolist() == completion.logprobs.tolist()
    assert different.logprobs.tolist() != chat.logprobs.tolist()
    assert generated.generation[0].policy_version == "default"


async def test_unknown_fields_are_ignored_with_a_200() -> None:
    async with VllmServer(token_chat=False) as fake:
        body = {
            "messages": MESSAGES,
            "kv_transfer_params": {"prompt_token_ids": PROMPT},
            "return_token_ids": True,
        }
        status, reply = await ask(fake, "/v1/chat/completions", body)
    assert status == 200
    assert reply["prompt_token_ids"] != PROMPT


async def test_the_two_route_server_insists_on_its_sampling_and_splices() -> None:
    exact = {"messages": MESSAGES, "temperature": 1.0, "top_p": 1.0, "logprobs": True}
    async with VllmServer(kind="nemo_rl", answers="Hello") as fake, aiohttp.ClientSession() as http:
        for route in ("/health", "/v1/models"):
            async with http.get(fake.url + route) as reply:
                assert reply.status == 404
        chat = fake.url + "/v1/chat/completions"
        async with http.post(chat, json=exact | {"temperature": 0.5}) as reply:
            assert (reply.status, await reply.text()) == (500, "Internal Server Error")
        _, first = await ask(fake, "/v1/chat/completions", exact)
        (turn,) = turns_from_reply(first, prompt_token_ids=PROMPT)
        known = [1, 2, 3, 256]
        history = [
            *MESSAGES,
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "And?"},
        ]
        _, spliced = await ask(
            fake,
            "/v1/chat/completions",
            exact | {"messages": history, "required_prefix_token_ids": known}
            | {"return_token_ids": True},
        )  # fmt: skip
    assert first["choices"][0]["logprobs"]["content"][0]["token"].startswith("token_id:")
    assert len(turn.sampled_ids) == len("Hello") + 1
    behind = "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    assert spliced["prompt_token_ids"] == [1, 2, 3, *fake.fake.tokenizer.encode(behind)]


async def test_an_aborted_generation_is_a_200_with_part_of_the_tokens() -> None:
    body = {"prompt": PROMPT, "max_tokens": 1200, "logprobs": 0, "return_token_ids": True}
    async with VllmServer(answers="x" * 1000, token_s=0.05) as fake:
        task = asyncio.create_task(ask(fake, "/v1/completions", body))
        async with asyncio.timeout(60):
            while not fake.generations:  # noqa: ASYNC110 (a list makes no noise)
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # its first tokens are due before, its last ones long after
        status, reply = await ask(fake, "/abort_requests", {})
        assert (status, reply) == (200, real("extra_abort_now")["response"])
        status, reply = await task
    assert status == 200
    assert reply["choices"][0]["finish_reason"] == "abort"
    assert 0 < len(reply["choices"][0]["token_ids"]) < 1000
