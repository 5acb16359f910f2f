"""Turns come out of real replies as they went in, and nothing is invented on the way."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbridge.contracts.codecs import engine, files, gym, messages, stream
from rlbridge.contracts.reward import FailureClass, InvalidReward, ValidReward
from rlbridge.contracts.rollout import FinishReason, MaskReason, Rollout, Turn
from rlbridge.contracts.tokens import (
    Encoding,
    LogprobsMode,
    PromptSpan,
    Provenance,
    SampledSpan,
)
from rlbridge.errors import ContractError

CAPTURES = Path(__file__).parent / "captures"
SAMPLED = [1397, 3917, 2767, 3777, 3968, 235]


def capture(name: str) -> dict:
    return json.loads((CAPTURES / f"{name}.json").read_text())


def turns_of(name: str) -> tuple[Turn, ...]:
    pair = capture(f"vllm_{name}")
    reply = pair["response"]
    if isinstance(reply, list):
        reply = stream.reply_from_chunks(stream.chunks_from_sse(reply))
    return engine.turns_from_reply(reply, request=pair["request"]["body"])


@pytest.mark.parametrize(
    "name",
    [
        "chat_full_rl",
        "chat_return_token_ids",
        "completions_token_ids",
        "completions_token_ids_as_ids",
        "generate",
    ],
)
def test_every_kind_of_reply_gives_the_same_turn(name: str) -> None:
    (turn,) = turns_of(name)
    assert turn.sampled_ids.tolist() == SAMPLED
    assert len(turn.prompt) == 31
    assert turn.logprobs[0] == np.float32(-8.399815559387207)
    assert turn.finish is FinishReason.LENGTH
    assert turn.sampling["temperature"] == 1.0
    assert turn.trainable.all()


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("chat_stream_token_ids", SAMPLED[:4]),
        ("generate_stream", SAMPLED[:3]),
        ("completions_stream", [3151, 3151, 2668]),
    ],
)
def test_a_stream_gives_the_turn_of_the_whole_reply(name: str, ids: list[int]) -> None:
    (turn,) = turns_of(name)
    assert turn.sampled_ids.tolist() == ids
    assert len(turn.prompt) == 31
    assert not np.isnan(turn.logprobs).any()


def test_ids_come_out_of_the_logprobs_where_they_are_spelled_token_id() -> None:
    pair = capture("vllm_chat_logprobs_tokens_as_ids")
    (turn,) = engine.turns_from_reply(pair["response"], prompt_token_ids=[1, 2])
    assert turn.sampled_ids.tolist() == SAMPLED
    assert turn.prompt.token_ids.tolist() == [1, 2]
    with pytest.raises(ContractError, match="no prompt_token_ids; set return_token_ids"):
        engine.turns_from_reply(pair["response"])


def test_the_text_of_a_token_is_never_taken_for_its_id() -> None:
    pair = capture("vllm_chat_logprobs")
    with pytest.raises(ContractError, match="'led' is not a token ID"):
        engine.turns_from_reply(pair["response"], prompt_token_ids=[1])


def test_each_choice_is_a_turn_with_its_own_prompt_and_call_id() -> None:
    first, second = turns_of("chat_n2")
    assert first.sampled_ids.tolist() != second.sampled_ids.tolist()
    assert first.call_id != second.call_id
    assert [len(turn.prompt) for turn in turns_of("completions_batch_ids")] == [31, 5]


def test_an_abort_is_seen_although_its_status_was_200() -> None:
    (turn,) = turns_of("extra_aborted_inflight")
    assert turn.finish is FinishReason.ABORT


def test_stop_reasons_tell_the_primary_end_from_others() -> None:
    assert turns_of("extra_eos_endoftext")[0].stop_reason == 4088
    assert turns_of("extra_stop_token_ids")[0].stop_reason == 100


def test_weight_versions_cut_a_generation_into_spans() -> None:
    pair = capture("vllm_generate")
    choice = pair["response"]["choices"][0]
    choice["weight_versions"] = [
        {"version": "a", "start": 0, "end": 2},
        {"version": "b", "start": 2, "end": 6},
    ]
    (turn,) = engine.turns_from_reply(pair["response"], request=pair["request"]["body"])
    assert [(s.policy_version, len(s)) for s in turn.generation] == [("a", 2), ("b", 4)]
    choice["weight_versions"] = [{"version": "a", "start": 0, "end": 2}]
    with pytest.raises(ContractError, match="end at 2 of 6"):
        engine.turns_from_reply(pair["response"], request=pair["request"]["body"])


def test_vllms_stand_in_for_no_logprob_is_a_missing_one() -> None:
    pair = capture("vllm_chat_full_rl")
    pair["response"]["choices"][0]["logprobs"]["content"][2]["logprob"] = -9999.0
    (turn,) = engine.turns_from_reply(pair["response"])
    assert np.isnan(turn.logprobs).tolist() == [False, False, True, False, False, False]


def test_nemo_rls_message_fields_are_read() -> None:
    reply = {"choices": [{"message": {"prompt_token_ids": [1], "generation_token_ids": [2],
                                      "generation_log_probs": [-0.5]}}]}  # fmt: skip
    (turn,) = engine.turns_from_reply(reply)
    assert turn.token_ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c["token_ids"].pop(), "5 token IDs but 6 logprobs"),
        (lambda c: c.update(token_ids=[]), "0 token IDs but 6 logprobs"),
        (lambda c: c.update(token_ids=["a"] * 6), "must be integers"),
        (lambda c: c.update(token_ids=None, logprobs=None), "has no token IDs"),
    ],
)
def test_a_reply_that_lost_tokens_is_refused(change, why) -> None:
    reply = capture("vllm_chat_full_rl")["response"]
    change(reply["choices"][0])
    with pytest.raises(ContractError, match=why):
        engine.turns_from_reply(reply)


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": "x"}, {"error": {}}])
def test_what_is_no_reply_is_refused(reply: dict) -> None:
    with pytest.raises(ContractError, match="no reply of an engine"):
        engine.turns_from_reply(reply)


@pytest.mark.parametrize(
    "text", ["token_id:", "token_id:-1", "token_id:1.0", "1", 1, None, "token_id:²"]
)
def test_only_a_spelled_out_id_is_an_id(text: object) -> None:
    with pytest.raises(ContractError, match="is not a token ID"):
        engine.parse_token_id(text)


def test_a_stream_that_was_cut_is_refused() -> None:
    lines = capture("vllm_chat_stream_token_ids")["response"]
    cut = [line for line in lines if '"finish_reason":"length"' not in line]
    with pytest.raises(ContractError, match="ends without a finish_reason"):
        stream.reply_from_chunks(stream.chunks_from_sse(cut))
    with pytest.raises(ContractError, match="is no JSON"):
        stream.chunks_from_sse(['data: {"id'])
    with pytest.raises(ContractError, match="failed while streaming"):
        stream.chunks_from_sse(['data: {"error": {"message": "boom"}}'])
    with pytest.raises(ContractError, match="no choice"):
        stream.reply_from_chunks([])


def test_streamed_tool_calls_are_put_together() -> None:
    calls = [{"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"a"'}}]
    more = [{"index": 0, "function": {"arguments": ": 1}"}}]
    reply = stream.reply_from_chunks(
        [
            {"choices": [{"index": 0, "delta": {"reasoning": "hm", "tool_calls": calls}}]},
            {
                "choices": [
                    {"index": 0, "delta": {"tool_calls": more}, "finish_reason": "tool_calls"}
                ]
            },
        ]
    )
    message = reply["choices"][0]["message"]
    assert message["reasoning"] == "hm"
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    "name", ["mcqa__verify_with_token_ids", "weather__function_call_with_token_ids"]
)
def test_gyms_fields_are_read_from_the_item_that_carries_them(name: str) -> None:
    response = capture(f"gym_{name}")["request"]["body"]["response"]
    (turn,) = gym.turns_from_response(response)
    assert gym.fields_from_turn(turn).keys() <= response["output"][-1].keys()
    assert turn.prompt.token_ids.tolist() == response["output"][-1]["prompt_token_ids"]
    assert (
        gym.without_token_fields(response["output"])[0].keys() & set(gym.fields_from_turn(turn))
        == set()
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mcqa__verify_token_ids_partial_fields", "but not generation_log_probs"),
        (
            "mcqa__verify_token_ids_as_strings",
            r"\$.response.output\[0\]: token IDs must be integers",
        ),
        ("mcqa__token_ids_len_mismatch", "3 sampled token IDs but 1 logprobs"),
        ("mcqa__token_ids_positive_logprob", "not the log of a probability"),
        ("mcqa__token_ids_empty_lists", "holds no token"),
    ],
)
def test_what_gym_drops_or_passes_in_silence_is_refused_here(name: str, why: str) -> None:
    response = capture(f"gym_{name}")["request"]["body"]["response"]
    with pytest.raises(ContractError, match=why):
        gym.turns_from_response(response)


def test_a_null_logprob_is_missing_and_cannot_go_back_through_gym() -> None:
    response = capture("gym_mcqa__verify_token_ids_logprob_null")["request"]["body"]["response"]
    (turn,) = gym.turns_from_response(response)
    assert turn.trainable.tolist() == [True, False]
    with pytest.raises(ContractError, match="Gym drops"):
        gym.fields_from_turn(turn)


IDS = st.integers(0, 2**31 - 1)
LOGPROB = st.one_of(st.none(), st.floats(-100, 0, width=32))
JSON = st.dictionaries(
    st.text(max_size=3), st.one_of(st.integers(-9, 9), st.text(max_size=3)), max_size=2
)


@st.composite
def spans(draw: st.DrawFn) -> SampledSpan:
    ids = draw(st.lists(IDS, min_size=1, max_size=5))
    logprobs = draw(st.lists(LOGPROB, min_size=len(ids), max_size=len(ids)))
    codes = draw(st.lists(st.sampled_from([Provenance.SAMPLED, Provenance.MISSING]),
                          min_size=len(ids), max_size=len(ids)))  # fmt: skip
    return SampledSpan(
        ids, logprobs, codes, draw(st.one_of(st.none(), st.integers(0, 9), st.text()))
    )


@st.composite
def some_turns(draw: st.DrawFn) -> Turn:
    ids = draw(st.lists(IDS, min_size=1, max_size=5))
    codes = draw(st.lists(st.sampled_from(Provenance), min_size=len(ids), max_size=len(ids)))
    return Turn(
        PromptSpan(ids, codes, draw(st.sampled_from([None, 2**31]))),
        tuple(draw(st.lists(spans(), min_size=1, max_size=2))),
        draw(st.sampled_from(FinishReason)),
        draw(st.one_of(st.none(), IDS, st.text(max_size=3))),
        draw(JSON),
        draw(st.sampled_from([None, *LogprobsMode])),
        draw(st.one_of(st.none(), st.builds(Encoding, st.text(max_size=3), st.text(max_size=3)))),
        draw(st.text(max_size=3)),
    )


REWARDS = st.one_of(
    st.none(),
    st.builds(ValidReward, st.floats(-5, 5), st.just({"a": 1.0}), st.booleans()),
    st.builds(InvalidReward, st.sampled_from(FailureClass), st.text(max_size=5)),
)
ROLLOUTS = st.builds(
    Rollout,
    st.text(min_size=1, max_size=4),
    st.lists(some_turns(), min_size=1, max_size=3).map(tuple),
    REWARDS,
    st.text(max_size=3),
    st.sampled_from([None, *MaskReason]),
    JSON,
)


@settings(max_examples=600, deadline=None)
@given(ROLLOUTS)
def test_a_rollout_survives_json(rollout: Rollout) -> None:
    document = json.loads(json.dumps(files.rollout_to_json(rollout)))
    assert files.rollout_from_json(document) == rollout


@settings(max_examples=150, deadline=None)
@given(st.lists(ROLLOUTS, max_size=3))
def test_rollouts_survive_npz(rollouts: list[Rollout]) -> None:
    assert files.rollouts_from_npz(files.rollouts_to_npz(rollouts)) == rollouts


@settings(max_examples=600, deadline=None)
@given(some_turns())
def test_a_turn_survives_an_engines_reply(turn: Turn) -> None:
    reply = json.loads(json.dumps(engine.reply_from_turn(turn)))
    (again,) = engine.turns_from_reply(reply)
    assert again.prompt.token_ids.tolist() == turn.prompt.token_ids.tolist()
    assert again.sampled_ids.tolist() == turn.sampled_ids.tolist()
    assert np.array_equal(again.logprobs, turn.logprobs, equal_nan=True)
    assert again.finish is turn.finish
    assert again.stop_reason == turn.stop_reason
    known = [s.policy_version for s in turn.generation]
    if any(version is not None for version in known):
        assert [s.policy_version for s in again.generation] == known


@settings(max_examples=400, deadline=None)
@given(some_turns())
def test_a_turn_survives_gyms_fields(turn: Turn) -> None:
    if np.isnan(turn.logprobs).any():
        with pytest.raises(ContractError, match="Gym drops"):
            gym.fields_from_turn(turn)
        return
    again = gym.turn_from_item(json.loads(json.dumps(gym.fields_from_turn(turn))))
    assert again is not None
    assert again.token_ids.tolist() == turn.token_ids.tolist()
    assert again.logprobs.tolist() == turn.logprobs.tolist()


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({}, "version is None"),
        ({"version": 2}, "reads version 1"),
        ({"version": 1}, "lacks or garbles 'rollout_id'"),
    ],
)
def test_a_document_of_another_version_is_refused(document: dict, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        files.rollout_from_json(document)


def test_a_file_cut_short_is_refused() -> None:
    data = files.rollouts_to_npz([])
    for broken in (b"", b"nonsense", data[: len(data) // 2]):
        with pytest.raises(ContractError, match="not an npz file of rollouts"):
            files.rollouts_from_npz(broken)


TEXT = st.text(min_size=1, max_size=8)
CALLS = st.lists(
    st.builds(
        lambda i, n, a: {"id": i, "type": "function", "function": {"name": n, "arguments": a}},
        TEXT,
        TEXT,
        TEXT,
    ),
    min_size=1,
    max_size=2,
)
TOKENS = {"prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [-0.5]}


@st.composite
def chat_messages(draw: st.DrawFn) -> dict:
    role = draw(st.sampled_from(["user", "system", "developer", "tool", "assistant"]))
    if role == "tool":
        return {"role": role, "tool_call_id": draw(TEXT), "content": draw(TEXT)}
    if role != "assistant":
        return {"role": role, "content": draw(TEXT)}
    message: dict = {"role": role, "content": draw(st.one_of(st.none(), TEXT))}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(TEXT)
    if message["content"] is None or draw(st.booleans()):
        message["tool_calls"] = draw(CALLS)
    return message | TOKENS


@settings(max_examples=600, deadline=None)
@given(st.lists(chat_messages(), max_size=5))
def test_chat_messages_survive_as_responses_items(talk: list[dict]) -> None:
    items = [item for message in talk for item in messages.items_from_message(message, item_id="1")]
    assert messages.messages_from_items(json.loads(json.dumps(items))) == talk
    for message in talk:
        carriers = [i for i in messages.items_from_message(message) if "prompt_token_ids" in i]
        assert len(carriers) == (message["role"] == "assistant")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "nobody"}, "not one of the Chat API's"),
        ({"role": "assistant", "content": None}, "neither text, reasoning nor tool calls"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "only text is followed"),
        ({"role": "user", "content": 1}, "must be text or a list of parts"),
    ],
)
def test_messages_that_are_not_text_are_refused(message: dict, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        messages.items_from_message(message)


def test_an_item_nobody_knows_is_refused() -> None:
    with pytest.raises(ContractError, match="'web_search_call'"):
        messages.messages_from_items([{"type": "web_search_call"}])


def test_calls_without_token_fields_are_told_apart_by_their_items() -> None:
    text = {"type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "a", "annotations": []}]}  # fmt: skip
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    talk = messages.messages_from_items([thought, text, call, call, text, text, thought])
    assert [len(message.get("tool_calls", ())) for message in talk] == [2, 0, 0, 0]
