"""What counts as the same history, tried on conversations of every shape."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import PromptSpan, SampledSpan
from rlbridge.gateway.calls import Call
from rlbridge.gateway.canonical import key_of, said
from rlbridge.gateway.history import Node, Walk, root_of

Message = dict[str, Any]
TEXT = st.text(st.sampled_from("ab \n{}\"',:é"), max_size=12)
ARGUMENTS = st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.none()), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> Message:
    message: Message = {"role": "assistant", "content": draw(TEXT)}
    if draw(st.booleans()):
        message["reasoning"] = draw(TEXT)
    calls = [
        {
            "id": f"call{draw(st.integers(0, 99))}",
            "type": "function",
            "function": {"name": draw(st.sampled_from("fg")), "arguments": json.dumps(arguments)},
        }
        for arguments in draw(st.lists(ARGUMENTS, max_size=2))
    ]
    return message | ({"tool_calls": calls} if calls else {})


def questions() -> st.SearchStrategy[Message]:
    users = TEXT.map(lambda text: {"role": "user", "content": text})
    tools = TEXT.map(lambda text: {"role": "tool", "tool_call_id": "call1", "content": text})
    return st.one_of(users, tools)


@st.composite
def echoes(draw: st.DrawFn, message: Message) -> Message:
    """The same answer as some client might send it back."""
    echo = {key: value for key, value in message.items() if value is not None}
    if draw(st.booleans()):
        echo.pop("reasoning", None)
    space = draw(st.sampled_from(["", " ", "\n\n"]))
    echo["content"] = space + message["content"] + space
    if draw(st.booleans()):
        echo["content"] = [{"type": "text", "text": echo["content"]}]
    if "tool_calls" in message:
        separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
        echo["tool_calls"] = [
            call
            | {
                "function": call["function"]
                | {
                    "arguments": json.dumps(
                        json.loads(call["function"]["arguments"]),
                        separators=separators,
                        sort_keys=draw(st.booleans()),
                        ensure_ascii=draw(st.booleans()),
                    )
                }
            }
            for call in message["tool_calls"]
        ]
    return echo


@given(st.data(), answers())
def test_an_echo_is_its_answer(data: st.DataObject, message: Message) -> None:
    assert said(data.draw(echoes(message))).is_echo_of(said(message))


@given(answers(), answers())
def test_other_words_or_calls_are_another_answer(one: Message, other: Message) -> None:
    def words(message: Message) -> object:
        calls = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls", ())
        ]
        return message["content"].split(), calls

    same_ids = [c["id"] for c in one.get("tool_calls", ())] == [
        c["id"] for c in other.get("tool_calls", ())
    ]
    if words(one) != words(other) and not (same_ids and not other["content"].strip()):
        try:
            same_json = json.loads(one["content"]) == json.loads(other["content"])
        except ValueError:
            same_json = False
        if not same_json:
            assert not said(other).is_echo_of(said(one))


@given(questions(), questions())
def test_what_was_written_is_the_same_letter_for_letter(one: Message, other: Message) -> None:
    if key_of(one) == key_of(other):
        same = one == other
        if not same:  # a tool's JSON, differently spaced
            assert one["role"] == other["role"] == "tool"
            assert json.loads(one["content"]) == json.loads(other["content"])


def call_of(number: int, message: Message) -> Call:
    span = SampledSpan([number + 1], [-0.5])
    return Call(number, str(number), None, PromptSpan([9]), (span,), message)


@given(st.data(), st.lists(st.tuples(questions(), answers()), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_conversation_is_known_to_its_last_answer_however_it_is_echoed(
    data: st.DataObject, talk: list[tuple[Message, Message]]
) -> None:
    root = root_of(None, None)
    node: Node = root
    history: list[Message] = []
    for number, (question, answer) in enumerate(talk):
        history.append(question)
        walk = Walk(root, history)
        node = walk.node
        for message in history[walk.known :]:
            node = node.find(message) or node.add(message)
        if number:
            assert walk.known == len(history) - 1
            assert walk.anchor is not None
            assert walk.anchor.call is not None
            assert walk.anchor.call.number == number - 1
        node.answer(call_of(number, answer))
        history = [
            message if index % 2 == 0 else data.draw(echoes(talk[index // 2][1]))
            for index, message in enumerate([m for pair in talk[: number + 1] for m in pair])
        ]


@given(st.data(), st.lists(st.tuples(questions(), answers()), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_an_edited_question_is_known_no_further_than_the_edit(
    data: st.DataObject, talk: list[tuple[Message, Message]]
) -> None:
    root = root_of(None, None)
    node: Node = root
    for number, (question, answer) in enumerate(talk):
        node = (node.find(question) or node.add(question)).answer(call_of(number, answer))
    messages = [message for pair in talk for message in pair]
    edited = data.draw(st.integers(0, len(talk) - 1)) * 2
    messages[edited] = messages[edited] | {"content": messages[edited]["content"] + "!"}
    assert Walk(root, messages).known == edited


def test_a_histories_place_has_the_same_name_in_every_process() -> None:
    one, two = (root_of([{"a": 1}], None).add({"role": "user", "content": "x"}) for _ in range(2))
    assert one.digest == two.digest
    assert one.digest != root_of(None, None).add({"role": "user", "content": "x"}).digest


@pytest.mark.parametrize("branch", [False, True])
def test_a_call_gives_back_the_prompt_it_was_made_of(branch: bool) -> None:
    """Each call keeps what it added alone; put together it is the prompt the engine saw."""
    prompt = PromptSpan([1, 2, 3])
    calls: list[Call] = []
    turns: list[Turn] = []
    for number in range(5):
        base = calls[1 if branch and number == 4 else -1] if calls else None
        added = PromptSpan([10 + number]) if base else prompt
        span = SampledSpan([20 + number], [-0.5])
        whole = PromptSpan.joined([base.prompt(), *base.generation, added]) if base else prompt
        call = Call(number, str(number), base, added, (span,), {})
        call.keep(whole)
        calls.append(call)
        turns.append(Turn(whole, (span,), call_id=str(number)))
    assert [call.turn() for call in calls] == turns
    assert sum(call.held for call in calls) == 3 + 4 + 5
