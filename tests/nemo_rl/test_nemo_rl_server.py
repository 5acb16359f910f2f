"""NeMo-RL's own vLLM server, run on a CPU: our engine, our gateway and its Gym path against it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
import yaml

from benchmarks.gateway_contenders import running_gateway
from benchmarks.lessons import COUNT, COUNTER_TOOLS, chat_tools
from benchmarks.tiny_model import words
from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import LogprobsMode, PromptSpan
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import ChatContext, EngineCall
from rlbridge.engines.http_engine import HttpEngine
from rlbridge.engines.open import open_engine
from rlbridge.errors import ConfigError, EngineError
from rlbridge.testing.exchange import Exchange, LocalServer
from tests.engines.shapes import ask, unlike
from tests.nemo_rl import real_server
from tests.nemo_rl.agents import USER
from tests.nemo_rl.conftest import Threaded
from tests.nemo_rl.real_server import CONTEXT, TEMPERATURE, Server
from tests.nemo_rl.test_gym_gateway import made_by_setup

pytestmark = [pytest.mark.nemo_rl, pytest.mark.vllm]

CAPTURES = real_server.ROOT / "tests" / "engines" / "captures"
MESSAGES = [{"role": "user", "content": "What does os.path.join do?"}]
PROMPT = PromptSpan([301, 512, 97, 440, 133, 512, 244])
NAMES = json.loads((CAPTURES / "nemo_rl_head.json").read_text(encoding="utf-8"))["pairs"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := real_server.why_unavailable():
        pytest.skip(reason)
    with real_server.running(tmp_path_factory.mktemp("server")) as running:
        yield running


class Rendering(LocalServer):
    """The server, behind a vLLM that ignores a prompt's IDs in a chat, as older ones do."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self._root = root

    async def answer(self, exchange: Exchange) -> bool:
        body = json.loads(exchange.raw) if exchange.raw else None
        if body is not None:
            body.pop("kv_transfer_params", None)
        request = exchange.method, self._root + exchange.route
        async with aiohttp.ClientSession() as http, http.request(*request, json=body) as reply:
            return await exchange.send(reply.status, await reply.read(), reply.content_type)


@pytest.fixture(scope="module")
def rendering(server: Server) -> Iterator[str]:
    running = Threaded(Rendering(server.root))
    yield running.url
    running.close()


@pytest.fixture(scope="module")
def model(server: Server) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(server.folder).eval()


@asynccontextmanager
async def engine(url: str, **config: Any) -> AsyncIterator[HttpEngine]:
    settings = {"model": "tiny", "temperature": TEMPERATURE, "top_p": 1.0, **config}
    connected = HttpEngine(url, PolicyConfig(url=url, **settings))
    try:
        yield connected
    finally:
        await connected.aclose()


def assert_of_the_policy(turn: Turn | None, model: Any) -> None:
    """That the logprobs are those of the weights, for these tokens behind this prompt."""
    import torch

    assert turn is not None
    ids = torch.tensor([turn.token_ids.tolist()])
    with torch.no_grad():
        scores = torch.log_softmax(model(ids).logits[0] / TEMPERATURE, dim=-1)
    start = len(turn.prompt)
    ours = scores[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].numpy()
    np.testing.assert_allclose(turn.logprobs, ours, atol=1e-3)


async def test_it_is_known_by_its_two_routes(server: Server) -> None:
    async with engine(server.url) as connected:
        info = await connected.info()
    assert (info.model, info.wire, info.tokens) == ("tiny", "nemo_rl", True)
    assert (info.max_model_len, info.parses) == (CONTEXT, False)


async def test_sixteen_calls_at_once_get_the_tokens_and_logprobs_that_were_sampled(
    server: Server, model: Any
) -> None:
    prompts = [PromptSpan([*PROMPT.token_ids, number]) for number in range(300, 316)]
    sampling = {"max_tokens": 24}
    async with engine(server.url) as connected:
        calls = [EngineCall(prompt, sampling, chat=ChatContext(MESSAGES)) for prompt in prompts]
        answers = await asyncio.gather(*(connected.generate(call) for call in calls))
        streamed = [delta.done async for delta in connected.stream(calls[0]) if delta.done]
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        assert answer.turn is not None
        assert answer.turn.prompt is prompt
        assert answer.prompt_tokens == len(prompt)
        assert answer.turn.logprobs_mode is LogprobsMode.PROCESSED
        assert_of_the_policy(answer.turn, model)
    assert streamed[0] is not None
    assert_of_the_policy(streamed[0].turn, model)


async def test_other_sampling_than_the_trainers_is_refused_with_the_reason(server: Server) -> None:
    pool = open_engine(PolicyConfig(url=server.url, model="tiny"))
    with pytest.raises(ConfigError, match=r"refuses to sample with temperature 1, top_p 1"):
        await pool.info()
    await pool.aclose()
    async with engine(server.url) as connected:
        for sampling, reason in (
            ({"temperature": 0.5}, "temperature is 0.5, but the trainer allows 0.8 alone"),
            ({"top_p": 0.5}, "top_p is 0.5, but the trainer allows 1.0 alone"),
            ({"top_k": 5}, "top_k is 5, but NeMo-RL allows none"),
        ):
            with pytest.raises(EngineError, match=reason):
                await connected.generate(EngineCall(PROMPT, sampling))


async def test_a_prompt_beyond_the_context_says_so_and_a_limit_is_cut_to_the_room(
    server: Server, rendering: str
) -> None:
    long = [{"role": "user", "content": "x y z " * 300}]
    async with engine(server.url) as connected:
        with pytest.raises(EngineError, match="maximum context length") as caught:
            await connected.generate(EngineCall(PromptSpan([7] * CONTEXT)))
        assert caught.value.code == "context_length_exceeded"
        call = EngineCall(PromptSpan([7] * 700), {"max_tokens": 10_000, "ignore_eos": True})
        (answer,) = await connected.generate(call)
    assert answer.finish is FinishReason.LENGTH
    assert answer.turn is not None
    assert len(answer.turn.token_ids) == CONTEXT
    async with engine(rendering) as connected:  # its own rendering is too long, ours is unknown
        with pytest.raises(EngineError, match="maximum context length") as caught:
            await connected.generate(EngineCall(None, {"max_tokens": 4}, chat=ChatContext(long)))
    assert (caught.value.code, caught.value.retryable) == ("context_length_exceeded", False)


async def test_its_parser_reads_tool_calls_and_the_tokens_stay_as_sampled(
    server: Server, model: Any
) -> None:
    from transformers import AutoTokenizer

    tools = chat_tools(COUNTER_TOOLS)
    chat = ChatContext([{"role": "user", "content": COUNT}], tools)
    tokenizer = AutoTokenizer.from_pretrained(server.folder)
    ids = tokenizer.apply_chat_template(
        list(chat.messages), tools=tools, add_generation_prompt=True, return_dict=False
    )
    async with engine(server.url) as connected:
        call = EngineCall(PromptSpan(ids), {"max_tokens": 64}, n=8, chat=chat)
        answers = await connected.generate(call)
    called = [a for a in answers if a.message and a.message.get("tool_calls")]
    assert called
    for answer in called:
        assert answer.message is not None
        assert answer.message["tool_calls"][0]["function"]["name"] == "increment_counter"
        assert answer.turn is not None
        assert "<tool_call>" in tokenizer.decode(answer.turn.sampled_ids)
        assert_of_the_policy(answer.turn, model)


async def test_a_stream_that_is_left_ends_there(server: Server) -> None:
    """A whole reply's request runs on: its route doesn't look whether the client left."""
    call = EngineCall(PROMPT, {"ignore_eos": True}, chat=ChatContext(MESSAGES))
    async with engine(server.url) as connected, aiohttp.ClientSession() as http:

        async def unfinished() -> int:
            async with http.get(f"{server.root}/unfinished") as reply:
                return int(await reply.json())

        stream = connected.stream(call)
        await anext(stream)
        assert await unfinished() == 1
        await stream.aclose()
        for _ in range(20):
            if not (left := await unfinished()):
                break
            await asyncio.sleep(0.05)
    assert left == 0


@pytest.mark.parametrize("name", NAMES)
async def test_it_answers_as_it_did_when_it_was_captured(server: Server, name: str) -> None:
    """The fake is held to the same captures, without NeMo-RL."""
    version = "head" if server.message_fields else "v0.7.0"
    captured = json.loads((CAPTURES / f"nemo_rl_{version}.json").read_text(encoding="utf-8"))
    pair = captured["pairs"][name]
    theirs = (pair["status"], pair["content_type"], pair["response"])
    assert unlike(theirs, await ask(server.root, pair["request"])) == []


@pytest.mark.parametrize("splices", [False, True], ids=["exact_prompts", "its_own_splice"])
def test_turns_whose_text_is_rewritten_have_no_drift(
    server: Server, rendering: str, splices: bool, model: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(server.folder)
    url = rendering if splices else server.url
    config = tmp_path / "gateway.yaml"
    policy = {"url": url, "model": "tiny", "temperature": TEMPERATURE, "top_p": 1.0}
    config.write_text(yaml.safe_dump({"policy": policy}))
    other = 0
    with (
        running_gateway(None, server.folder, tmp_path / "calls", str(config)) as gateway,
        httpx.Client(timeout=120, trust_env=False) as http,
    ):
        for seed in range(4):
            rng = random.Random(seed)
            messages: list[dict[str, Any]] = [{"role": "user", "content": words(rng, 3, 8)}]
            before: list[int] = []
            for _ in range(4):
                body = {"model": "tiny", "messages": messages, "max_tokens": 48}
                answer = http.post(f"{gateway.url}/s/d{seed}/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                message = answer.json()["choices"][0]["message"]
                prompt = message["prompt_token_ids"]
                assert prompt[: len(before)] == before
                assert messages[-1]["content"] in tokenizer.decode(prompt[len(before) :])
                rendered = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
                other += prompt != rendered
                before = prompt + message["generation_token_ids"]
                said = {"role": "assistant", "content": " " + (message["content"] or "").strip()}
                if message.get("reasoning"):
                    said["reasoning_content"] = message["reasoning"]
                messages += [said, {"role": "user", "content": words(rng, 3, 8)}]
            document = http.get(f"{gateway.url}/s/d{seed}/rollout").json()
            assert len(document["sequences"]) == 1
    assert other  # the text alone would have been encoded otherwise


def test_nemo_rls_gym_path_trains_what_its_server_sampled(
    cluster: None, server: Server, model: Any, tmp_path: Path
) -> None:
    """Its rollout, its server and its postprocessing; Gym's agents are stood for by ours."""
    import torch
    from nemo_rl.algorithms import grpo
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict
    from transformers import AutoTokenizer

    from rlbridge_nemo_rl import GymGateway, register

    class Generation:
        cfg = {"vllm_cfg": {"max_model_len": CONTEXT}}  # noqa: RUF012
        dp_openai_server_base_urls = [server.url]  # noqa: RUF012

    gateway = GymGateway(
        tmp_path / "gym", model="tiny", tokenizer=str(server.folder), temperature=TEMPERATURE,
        ready_timeout_s=120,
    )  # fmt: skip
    kinds = ["plain", "plain", "rewrites", "no_metadata"]
    rows = [
        {"responses_create_params": {"input": [USER]}, "agent_ref": {"name": "a"}, "agent": kind}
        for kind in kinds
    ]
    generation = {
        "temperature": TEMPERATURE, "top_p": 1.0, "top_k": None, "max_new_tokens": 48,
        "stop_strings": None, "stop_token_ids": None,
    }  # fmt: skip
    register(gateway=gateway)
    try:
        out = grpo.run_async_nemo_gym_rollout(
            policy_generation=Generation(),
            input_batch=BatchedDataDict(extra_env_info=rows, loss_multiplier=torch.ones(4)),
            tokenizer=AutoTokenizer.from_pretrained(server.folder),
            task_to_env={"nemo_gym": made_by_setup(gateway)},
            generation_config=generation,
            max_seq_len=CONTEXT,
        )
    finally:
        register()
        gateway.stop()
    assert out.final_batch["reward_valid"].tolist() == [True] * 4
    differences = []
    for log in out.final_batch["message_log"]:
        ids = torch.cat([message["token_ids"] for message in log]).long()
        with torch.no_grad():
            scores = torch.log_softmax(model(ids[None]).logits[0] / TEMPERATURE, dim=-1)
        start = 0
        for message in log:
            end = start + len(message["token_ids"])
            if message["role"] == "assistant":
                trained = scores[torch.arange(start - 1, end - 1), ids[start:end]]
                sampled = message["generation_logprobs"]
                differences += (trained.exp() - sampled.exp()).abs().tolist()
            start = end
    assert len(differences) > 8
    assert max(differences) < 1e-3
