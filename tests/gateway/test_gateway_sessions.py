"""Sessions: what goes on from what, what is a retry, a branch, another history."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import orjson
import pytest

from rlbridge.contracts.reward import ValidReward
from rlbridge.contracts.rollout import FinishReason, MaskReason
from rlbridge.contracts.tokens import Provenance
from rlbridge.errors import EngineError
from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller, Reply
from rlbridge.gateway.gateway import Gateway
from tests.gateway.core_kit import CALL, MODEL, TOKENIZER, TOOLS, ScriptedEngine, odd_ids, serving

Message = dict[str, Any]
ASK: Message = {"role": "user", "content": "What is it?"}
MORE: Message = {"role": "user", "content": "And then?"}
SESSION = Caller("s")


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def gateway(engine: ScriptedEngine) -> AsyncIterator[Gateway]:
    config = GatewayConfig.parse({"abort_wait_s": 0.0})
    async with Gateway(engine, TOKENIZER, config) as opened:
        yield opened


async def ask(
    gateway: Gateway, messages: list[Message], caller: Caller = SESSION, **fields: Any
) -> tuple[Message, Reply]:
    """The assistant message of an answer, and the reply."""
    reply = await gateway.chat({"messages": messages, **fields}, caller)
    assert isinstance(reply, Reply)
    return orjson.loads(reply.body)["choices"][0]["message"], reply


def how(reply: Reply) -> str:
    return reply.headers["x-rlbridge-prompt"]


def plain(message: Message) -> Message:
    """A message as clients keep it that know nothing of token fields."""
    known = ("role", "content", "tool_calls", "reasoning")
    return {key: message[key] for key in known if message.get(key) is not None}


def compact_arguments(message: Message) -> Message:
    calls = [
        call | {"function": call["function"] | {
            "arguments": json.dumps(json.loads(call["function"]["arguments"]),
                                    separators=(",", ":"), sort_keys=True)}}
        for call in message.get("tool_calls") or ()
    ]  # fmt: skip
    return message | ({"tool_calls": calls} if calls else {})


def arguments_as_object(message: Message) -> Message:
    calls = [
        call | {"function": call["function"] | {
            "arguments": dict(reversed(json.loads(call["function"]["arguments"]).items()))}}
        for call in message.get("tool_calls") or ()
    ]  # fmt: skip
    return message | ({"tool_calls": calls} if calls else {})


REENCODED = {
    "as it was": lambda m: m,
    "reasoning dropped": lambda m: {k: v for k, v in m.items() if k != "reasoning"},
    "reasoning in the content": lambda m: (
        {k: v for k, v in m.items() if k != "reasoning"}
        | {"content": f"<think>{m.get('reasoning', '')}</think>{m['content']}"}
    ),
    "white space": lambda m: m | {"content": "\n" + m["content"].replace(" ", "\n") + "  "},
    "content in parts": lambda m: m | {"content": [{"type": "text", "text": m["content"]}]},
    "content beside calls dropped": lambda m: m | {"content": None},
    "compact arguments": compact_arguments,
    "arguments as an object": arguments_as_object,
    "nulls and extras": lambda m: m | {"refusal": None, "audio": None, "annotations": []},
}


async def test_a_tool_conversation_re_encoded_differently_each_turn_never_drifts(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """Every way at every turn: the whole history is written anew in another encoding each time."""
    engine.answers.extend([CALL.replace("a b", f"a b{i}") for i in range(6)])
    history: list[Message] = [ASK]
    ways = list(REENCODED.values())
    said: list[Message] = []
    for turn in range(6):
        message, reply = await ask(gateway, history, tools=TOOLS)
        assert how(reply) == ("bridged" if turn else "rendered")
        said.append(plain(message))
        history = [ASK]
        for index, answer in enumerate(said):
            history.append(ways[(turn + index) % len(ways)](answer))
            call_id = answer["tool_calls"][0]["id"]
            history.append({"role": "tool", "tool_call_id": call_id, "content": f"result {index}"})
    built = await gateway.built("s")
    assert len(built.sequences) == 1
    sampled = [odd_ids(CALL.replace("a b", f"a b{i}")) for i in range(6)]
    assert built.trained_tokens == sum(len(ids) + 1 for ids in sampled)
    for before, after in zip(engine.calls, engine.calls[1:], strict=False):
        index = engine.calls.index(before)
        known = [*before.prompt.token_ids.tolist(), *sampled[index], TOKENIZER.eos_token_id]
        assert after.prompt.token_ids[: len(known)].tolist() == known


@pytest.mark.parametrize("way", REENCODED)
async def test_each_way_to_encode_an_answer_is_still_that_answer(
    gateway: Gateway, engine: ScriptedEngine, way: str
) -> None:
    engine.answers.append(CALL)
    message, _ = await ask(gateway, [ASK], tools=TOOLS)
    answer = plain(message)
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "3"}
    _, reply = await ask(gateway, [ASK, REENCODED[way](answer), result], tools=TOOLS)
    assert how(reply) == "bridged"


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m | {"content": m["content"] + " not"},
        lambda m: m | {"reasoning": "I made this up."},
        lambda m: m | {"tool_calls": None},
        lambda m: m | {"tool_calls": [m["tool_calls"][0] | {"function": {
            "name": "lookup", "arguments": '{"key": "other", "n": 3}'}}]},
        lambda m: m | {"tool_calls": [m["tool_calls"][0] | {"function": {
            "name": "erase", "arguments": '{"key": "a b", "n": 3}'}}]},
    ],
)  # fmt: skip
async def test_an_edited_answer_is_another_history_and_nothing_is_overwritten(
    gateway: Gateway, engine: ScriptedEngine, edit: Any
) -> None:
    engine.answers.append(CALL)
    message, _ = await ask(gateway, [ASK], tools=TOOLS)
    edited = edit(plain(message))
    _, reply = await ask(gateway, [ASK, edited, MORE], tools=TOOLS)
    assert how(reply) == "rendered; reason=unknown_history"
    assert engine.calls[1].prompt.provenance.max() == Provenance.PROMPT
    assert len((await gateway.built("s")).sequences) == 2


async def test_an_edited_question_is_rendered_anew(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    message, _ = await ask(gateway, [ASK])
    other = ASK | {"content": "What is it? "}
    _, reply = await ask(gateway, [other, plain(message), MORE])
    assert how(reply) == "rendered; reason=unknown_history"


async def test_an_early_branch_goes_on_from_the_longest_history_it_shares(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    first, _ = await ask(gateway, [ASK])
    history = [ASK, plain(first), MORE]
    second, _ = await ask(gateway, history)
    await ask(gateway, [*history, plain(second), MORE])
    _, reply = await ask(gateway, [ASK, plain(first), {"role": "user", "content": "Or else?"}])
    assert how(reply) == "bridged"
    built = await gateway.built("s")
    assert len(built.sequences) == 2
    assert built.trained_tokens == 4 * (len(odd_ids("All right.")) + 1)


async def test_a_compacted_history_and_a_sub_agent_are_sequences_of_their_own(
    gateway: Gateway,
) -> None:
    message, _ = await ask(gateway, [ASK])
    await ask(gateway, [ASK, plain(message), MORE])
    summary = {"role": "user", "content": "Summary: it is fine. Go on."}
    compacted, _ = await ask(gateway, [summary])
    _, reply = await ask(gateway, [summary, plain(compacted), MORE])
    assert how(reply) == "bridged"
    await ask(gateway, [{"role": "system", "content": "You are a sub-agent."}, ASK])
    assert len((await gateway.built("s")).sequences) == 3


async def test_other_tools_begin_another_sequence(gateway: Gateway) -> None:
    message, _ = await ask(gateway, [ASK])
    _, reply = await ask(gateway, [ASK, plain(message), MORE], tools=TOOLS)
    assert how(reply).startswith("rendered")


async def test_a_retry_gets_the_answer_that_was_lost_and_forks_nothing(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.answers.extend(["First.", "Second."])
    first, _ = await ask(gateway, [ASK], Caller("s", "", 0))
    again, _ = await ask(gateway, [ASK], Caller("s", "", 1))
    assert again == first
    key = Caller("s", "my-key")
    second, _ = await ask(gateway, [ASK, plain(first), MORE], key)
    assert (await ask(gateway, [ASK, plain(first), MORE], key))[0] == second
    assert len(engine.calls) == 2
    assert gateway.counts()["replayed"] == 2


async def test_a_reply_nobody_received_is_given_to_whoever_asks_again(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.answers.extend(["First.", "Second."])
    first, reply = await ask(gateway, [ASK])
    reply.lost()
    again, _ = await ask(gateway, [ASK])
    assert again == first
    later, _ = await ask(gateway, [ASK])
    assert later["content"] == "Second."


async def test_equal_requests_are_samples_of_one_call_and_the_used_one_is_trained(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.answers.extend(["First.", "Second.", "Done."])
    first, _ = await ask(gateway, [ASK])
    await ask(gateway, [ASK])
    await ask(gateway, [ASK, plain(first), MORE])
    built = await gateway.built("s")
    assert [drop.turn for drop in built.dropped] == [1]
    assert len(built.sequences) == 1


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110 (counters make no noise)
            await asyncio.sleep(0.01)


async def test_a_retry_joins_the_call_that_is_still_on_its_way(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.gate = asyncio.Event()
    first = asyncio.create_task(ask(gateway, [ASK]))
    await until(lambda: bool(engine.calls))
    second = asyncio.create_task(ask(gateway, [ASK], Caller("s", "", 1)))
    await until(lambda: gateway.in_flight == 2)
    first.cancel()  # the client gave up on it; its retry waits on
    await asyncio.sleep(0.01)
    engine.gate.set()
    assert (await second)[0]["content"] == "All right."
    assert engine.left == 0
    assert len(engine.calls) == 1


async def test_a_client_that_goes_away_ends_its_call_upstream(engine: ScriptedEngine) -> None:
    engine.gate = asyncio.Event()
    gateway = Gateway(engine, TOKENIZER)
    async with serving(gateway) as url, httpx.AsyncClient() as http:
        body = {"messages": [ASK]}
        leaving = asyncio.create_task(http.post(f"{url}/s/s/v1/chat/completions", json=body))
        await until(lambda: bool(engine.calls))
        leaving.cancel()
        await until(lambda: engine.left == 1 and not gateway.in_flight)
    assert engine.left == 1
    assert gateway.in_flight == 0


async def test_a_client_that_leaves_a_stream_ends_its_call_upstream(
    engine: ScriptedEngine,
) -> None:
    engine.gate = asyncio.Event()
    gateway = Gateway(engine, TOKENIZER)
    body = {"prompt": "What is it?", "stream": True}
    async with serving(gateway) as url, httpx.AsyncClient() as http:
        async with http.stream("POST", f"{url}/s/s/v1/completions", json=body) as reply:
            async for _ in reply.aiter_lines():
                break
        await until(lambda: bool(engine.left) and not gateway.in_flight)
        assert (await http.get(f"{url}/s/s/rollout")).json()["calls"] == 0
    assert engine.left == 1
    assert gateway.in_flight == 0


async def test_a_failed_call_masks_the_rollout_until_it_is_answered(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    await ask(gateway, [{"role": "user", "content": "Other."}])
    engine.answers.append(EngineError("gone", retryable=True))
    with pytest.raises(ApiError):
        await ask(gateway, [ASK])
    assert (await gateway.rollout("s")).masked is MaskReason.ENGINE_FAILED
    await ask(gateway, [ASK])
    assert (await gateway.rollout("s")).masked is None


async def test_a_refused_request_masks_nothing(gateway: Gateway, engine: ScriptedEngine) -> None:
    await ask(gateway, [ASK])
    engine.answers.append(EngineError("no", status=400))
    with pytest.raises(ApiError):
        await ask(gateway, [MORE])
    assert (await gateway.rollout("s")).masked is None


async def test_aborted_tokens_are_in_no_rollout(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.answers.extend([FinishReason.ABORT, "Whole."])
    await ask(gateway, [ASK])
    (turn,) = (await gateway.rollout("s")).turns
    assert turn.sampled_ids.tolist()[:-1] == odd_ids("Whole.")
    assert gateway.counts()["aborted"] == 1


async def test_without_a_session_echoed_tokens_are_gone_on_from(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    nobody = Caller()
    message, first = await ask(gateway, [ASK], nobody)
    second, reply = await ask(gateway, [ASK, message, MORE], nobody)
    assert how(reply) == "bridged"
    assert reply.headers["x-rlbridge-session"] == first.headers["x-rlbridge-session"]
    _, reply = await ask(gateway, [ASK, message, MORE, second, MORE], nobody)
    assert how(reply) == "bridged"


async def test_tokens_of_another_gateway_are_spliced_in(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    message, _ = await ask(gateway, [ASK])
    known = message["prompt_token_ids"] + message["generation_token_ids"]
    other_engine = ScriptedEngine()
    async with Gateway(other_engine, TOKENIZER) as other:
        _, reply = await ask(other, [ASK, message, MORE], Caller())
        assert how(reply) == "spliced"
        assert other_engine.calls[0].prompt.token_ids[: len(known)].tolist() == known
        prefix = {"required_prefix_token_ids": known}
        _, reply = await ask(other, [ASK, plain(message), MORE], Caller(), **prefix)
        assert how(reply) == "spliced"
        assert other_engine.calls[1].prompt.token_ids[: len(known)].tolist() == known


@pytest.mark.parametrize("where", ["same", "other"])
async def test_echoed_tokens_of_an_edited_history_are_not_believed(
    gateway: Gateway, where: str
) -> None:
    message, _ = await ask(gateway, [ASK], Caller())
    edited = [{"role": "user", "content": "What is that?"}, message, MORE]
    if where == "same":
        _, reply = await ask(gateway, edited, Caller())
    else:
        async with Gateway(ScriptedEngine(), TOKENIZER) as other:
            _, reply = await ask(other, edited, Caller())
    assert how(reply) == "rendered; reason=edited_history"


async def test_half_of_the_token_fields_is_refused(gateway: Gateway) -> None:
    message, _ = await ask(gateway, [ASK], Caller())
    del message["generation_log_probs"]
    message["generation_token_ids"] = [5]
    with pytest.raises(ApiError):
        await ask(gateway, [ASK, message, MORE], Caller())


async def test_tokenize_in_a_session_says_what_its_next_call_is_sent(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    message, _ = await ask(gateway, [ASK])
    history = [ASK, plain(message), MORE]
    reply = await gateway.tokenize({"messages": history}, SESSION)
    await ask(gateway, history)
    assert orjson.loads(reply.body)["tokens"] == engine.calls[1].prompt.token_ids.tolist()


async def test_metadata_names_a_session_and_the_header_goes_before_it(
    gateway: Gateway,
) -> None:
    metadata = {"metadata": {"rlbridge_session": "by-metadata"}}
    _, reply = await ask(gateway, [ASK], Caller(), **metadata)
    assert reply.headers["x-rlbridge-session"] == "by-metadata"
    _, reply = await ask(gateway, [ASK], SESSION, **metadata)
    assert reply.headers["x-rlbridge-session"] == "s"


async def test_a_session_by_cookie_follows_a_client_with_a_jar_of_its_own(
    engine: ScriptedEngine,
) -> None:
    config = GatewayConfig.parse({"sessions": {"cookie": True}})
    body = {"input": [ASK]}
    async with (
        serving(Gateway(engine, TOKENIZER, config)) as url,
        httpx.AsyncClient(base_url=url) as one,
        httpx.AsyncClient(base_url=url) as two,
    ):
        first = await one.post("/v1/responses", json=body)
        output = first.json()["output"]
        for item in output:
            for name in ("prompt_token_ids", "generation_token_ids", "generation_log_probs"):
                item.pop(name, None)
        again = await one.post("/v1/responses", json={"input": [ASK, *output, MORE]})
        other = await two.post("/v1/responses", json=body)
    assert again.headers["x-rlbridge-prompt"] == "bridged"
    assert "set-cookie" not in again.headers
    name = "x-rlbridge-session"
    assert first.headers[name] == again.headers[name] != other.headers[name]


async def test_a_previous_response_of_another_session_is_not_there(gateway: Gateway) -> None:
    reply = await gateway.responses({"input": "Hi"}, Caller("mine"))
    assert isinstance(reply, Reply)
    name = orjson.loads(reply.body)["id"]
    with pytest.raises(ApiError) as told:
        await gateway.responses({"input": "Hi", "previous_response_id": name}, Caller("other"))
    assert told.value.status == 404


async def test_a_reward_and_a_group_go_with_the_rollout(gateway: Gateway) -> None:
    name = await gateway.open_session(group_id="g", metadata={"task": 3})
    await ask(gateway, [ASK], Caller(name))
    await gateway.score(name, ValidReward(0.5))
    rollout = await gateway.rollout(name)
    assert rollout.trainable
    assert (rollout.group_id, rollout.metadata) == ("g", {"task": 3})


async def test_a_draining_gateway_takes_no_new_calls(gateway: Gateway) -> None:
    gateway.drain()
    with pytest.raises(ApiError) as told:
        await ask(gateway, [ASK])
    assert (told.value.status, told.value.code) == (503, "draining")


async def test_an_ended_session_is_gone_and_says_so(engine: ScriptedEngine) -> None:
    async with serving(Gateway(engine, TOKENIZER)) as url, httpx.AsyncClient(base_url=url) as http:
        opened = (await http.post("/s", json={"metadata": {"a": 1}})).json()
        path = opened["base_url"]
        async with openai.AsyncOpenAI(base_url=url + path, api_key="x") as client:
            await client.chat.completions.create(model=MODEL, messages=[ASK])
        assert (await http.get(f"/s/{opened['id']}/rollout")).json()["calls"] == 1
        assert (await http.delete(f"/s/{opened['id']}")).json()["deleted"] is True
        gone = await http.get(f"/s/{opened['id']}/rollout")
    assert gone.status_code == 410
    assert "ended by its client" in gone.text
