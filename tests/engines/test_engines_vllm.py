"""On a real vLLM: every wire gives the same tokens, exact prompts are proven, aborts are told."""

import asyncio
import importlib.util
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import numpy as np
import pytest

from rlbridge.contracts.rollout import FinishReason
from rlbridge.contracts.tokens import LogprobsMode, PromptSpan
from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.engine import ChatContext, Delta, EngineCall
from rlbridge.engines.http_engine import HttpEngine
from rlbridge.engines.open import open_engine
from rlbridge.errors import EngineError
from rlbridge.testing import EngineFault, VllmServer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vllm is not installed (extra: cpu)"
    ),
    # Loading torch and transformers warns of things of their own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

MESSAGES = [{"role": "user", "content": "What does os.path.join do?"}]
PROMPT = PromptSpan([301, 512, 97, 440, 133, 512, 244])
WIRES = ["token_chat", "generate", "completions"]


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny model with parsers and vLLM's routes for development."""
    from benchmarks.drift import PARSERS
    from benchmarks.engine import serve
    from benchmarks.tiny_model import make

    home = tmp_path_factory.mktemp("engines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        with serve(home / "tiny", home / "vllm.log", *PARSERS) as server:
            make(home / "tiny", steps=20)
            server.wait()
            yield server.url


@asynccontextmanager
async def engine(url: str, **config: Any) -> AsyncIterator[HttpEngine]:
    connected = HttpEngine(url, PolicyConfig(url=url, **config))
    try:
        yield connected
    finally:
        await connected.aclose()


async def tokenized(url: str, text: str) -> PromptSpan:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/tokenize", json={"model": "tiny", "prompt": text}) as reply,
    ):
        return PromptSpan((await reply.json())["tokens"])


async def test_every_wire_gives_the_same_greedy_tokens_and_logprobs(server_url: str) -> None:
    call = EngineCall(PROMPT, {"temperature": 0.0, "max_tokens": 12}, chat=ChatContext(MESSAGES))
    turns = {}
    for wire in WIRES:
        async with engine(server_url, wire=wire) as connected:
            info = await connected.info()
            assert (info.model, info.wire, info.max_model_len) == ("tiny", wire, 2048)
            (answer,) = await connected.generate(call)
            pieces = [delta async for delta in connected.stream(call)]
        done = pieces[-1].done
        assert done is not None
        assert done.turn is not None
        assert answer.turn is not None
        assert answer.prompt_tokens == len(PROMPT)
        np.testing.assert_array_equal(done.turn.sampled_ids, answer.turn.sampled_ids)
        np.testing.assert_allclose(done.turn.logprobs, answer.turn.logprobs, atol=1e-5)
        assert answer.turn.logprobs_mode is LogprobsMode.RAW
        assert answer.turn.prompt is PROMPT
        turns[wire] = answer.turn
    for turn in turns.values():
        np.testing.assert_array_equal(turn.sampled_ids, turns["completions"].sampled_ids)
        np.testing.assert_allclose(turn.logprobs, turns["completions"].logprobs, atol=1e-5)


async def test_the_prompt_is_exact_one_other_token_gives_other_logprobs(server_url: str) -> None:
    other = PromptSpan([*PROMPT.token_ids[:-1].tolist(), 245])
    for wire in WIRES:
        async with engine(server_url, wire=wire) as connected:
            answers = [
                await connected.generate(EngineCall(prompt, {"temperature": 0.0, "max_tokens": 4}))
                for prompt in (PROMPT, other, PROMPT)
            ]
        first, second, again = (answer[0].turn for answer in answers)
        assert first is not None
        assert second is not None
        assert again is not None
        np.testing.assert_allclose(first.logprobs, again.logprobs, atol=1e-5)
        assert not np.array_equal(first.logprobs, second.logprobs)


async def test_a_server_with_parsers_is_spoken_to_by_token_chat(server_url: str) -> None:
    async with engine(server_url) as connected:
        info = await connected.info()
        assert (info.wire, info.tokens, info.parses) == ("token_chat", True, True)
        call = EngineCall(
            PROMPT,
            {"temperature": 1.0, "max_tokens": 8, "seed": 3, "ignore_eos": True},
            n=2,
            chat=ChatContext(MESSAGES),
        )
        answers = await connected.generate(call)
    for answer in answers:
        assert answer.message is not None
        assert answer.turn is not None
        assert len(answer.turn.sampled_ids) == 8
        assert answer.finish is FinishReason.LENGTH


async def test_an_answer_aborted_in_flight_says_so(server_url: str) -> None:
    call = EngineCall(PROMPT, {"max_tokens": 1500, "ignore_eos": True}, chat=ChatContext(MESSAGES))
    async with engine(server_url) as connected, aiohttp.ClientSession() as session:
        await connected.info()
        task = asyncio.create_task(connected.generate(call))
        for _ in range(500):
            async with session.post(f"{server_url}/abort_requests", json={}) as reply:
                if (await reply.json())["aborted"]:
                    break
            await asyncio.sleep(0.01)
        (answer,) = await task
    assert answer.finish is FinishReason.ABORT
    assert answer.turn is None or len(answer.turn.sampled_ids) < 1500


async def test_a_cancelled_call_leaves_nothing_running(server_url: str) -> None:
    call = EngineCall(PROMPT, {"max_tokens": 1500, "ignore_eos": True}, chat=ChatContext(MESSAGES))
    async with engine(server_url) as connected, aiohttp.ClientSession() as session:

        async def metric(name: str) -> float:
            async with session.get(f"{server_url}/metrics") as reply:
                lines = (await reply.text()).splitlines()
            return sum(float(x.split()[-1]) for x in lines if x.startswith(f"vllm:{name}{{"))

        async def reaches(running: int) -> None:
            async with asyncio.timeout(60):
                while await metric("num_requests_running") != running:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        before = await metric("generation_tokens_total")
        pieces: list[Delta] = []
        stream = connected.stream(call)
        async for delta in stream:
            pieces.append(delta)
            break
        await stream.aclose()
        task = asyncio.create_task(connected.generate(call))
        await reaches(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await reaches(0)
        assert await metric("generation_tokens_total") - before < 2 * 1500


async def test_vllms_refusals_come_with_its_reason(server_url: str) -> None:
    async with engine(server_url, wire="completions") as connected:
        with pytest.raises(EngineError, match="out of vocabulary") as caught:
            await connected.generate(EngineCall(PromptSpan([5, 99_999]), {"max_tokens": 2}))
        assert (caught.value.status, caught.value.retryable) == (400, False)
        with pytest.raises(EngineError, match="temperature") as caught:
            await connected.generate(EngineCall(PROMPT, {"temperature": -1.0, "max_tokens": 2}))
        assert (caught.value.status, caught.value.param) == (400, "temperature")


async def test_a_refusal_inside_a_stream_is_the_same_error(server_url: str) -> None:
    for wire in WIRES:
        async with engine(server_url, wire=wire) as connected:
            stream = connected.stream(EngineCall(PromptSpan([5, 99_999]), {"max_tokens": 2}))
            with pytest.raises(EngineError, match="out of vocabulary") as caught:
                await anext(stream)
            assert (caught.value.status, caught.value.retryable) == (400, False)


async def test_stop_strings_leave_the_tokens_that_were_sampled(server_url: str) -> None:
    prompt = await tokenized(server_url, "What does os.path.join do?")
    async with engine(server_url, wire="completions") as connected:
        free = EngineCall(prompt, {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True})
        (whole,) = await connected.generate(free)
        found = re.search(r"[a-z]{3}", whole.text[5:])
        assert found is not None
        stop = found.group()
        for wire in WIRES:
            async with engine(server_url, wire=wire) as other:
                call = EngineCall(prompt, {**free.sampling, "stop": [stop]})
                (answer,) = await other.generate(call)
            if wire != "generate":  # vLLM 0.27 doesn't say there which token it stopped at
                assert answer.stop_reason == stop
            if wire != "token_chat":  # its parser takes text without marks for reasoning
                # /detokenize, where generate's text comes from, leaves special tokens in.
                text = re.sub(r"<\|\w+\|>", "", answer.text)
                assert text == whole.text[: whole.text.index(stop)]
            assert answer.turn is not None
            assert whole.turn is not None
            count = len(answer.turn.sampled_ids)
            np.testing.assert_array_equal(
                answer.turn.sampled_ids, whole.turn.sampled_ids[:count]
            )  # fmt: skip


async def test_a_call_moves_from_a_broken_replica_to_the_real_one(server_url: str) -> None:
    call = EngineCall(PROMPT, {"temperature": 0.0, "max_tokens": 6}, session="a")
    async with VllmServer() as broken:
        config = PolicyConfig(urls=[broken.url, server_url], wire="completions")
        pool = open_engine(config)
        try:
            await pool.info()
            broken.faults = deque([EngineFault.STATUS_503] * 100)
            answers = [
                (await pool.generate(replace(call, session=str(number))))[0] for number in range(6)
            ]
            await broken.stop()
            (last,) = await pool.generate(call)
        finally:
            await pool.aclose()
    assert {answer.replica for answer in (*answers, last)} == {server_url}
    first = answers[0].turn
    assert first is not None
    for answer in (*answers, last):
        assert answer.turn is not None
        np.testing.assert_array_equal(answer.turn.sampled_ids, first.sampled_ids)
