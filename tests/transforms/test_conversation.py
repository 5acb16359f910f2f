"""A row says the same in chat messages, whichever of Gym's forms it has."""

import copy
from typing import Any

import pytest
from made_rows import TOOL, answered, called, row, said, thought

from rlbridge.transforms.conversation import Prompts, conversation_of
from rlbridge.transforms.messages import Style
from rlbridge.transforms.rejects import BadRowError

PLAIN = row("Q?", "A")
USER = {"role": "user", "content": "Q?"}
ANSWER = {"role": "assistant", "content": "A"}


def messages(a_row: dict[str, Any], style: Style | None = None) -> list[dict[str, Any]]:
    said_ = conversation_of(a_row, Prompts(style or Style()))
    return said_.prompt.messages + said_.completion


def _with_input(given: Any) -> dict[str, Any]:
    changed = copy.deepcopy(PLAIN)
    changed["responses_create_params"]["input"] = given
    return changed


FORMS = {
    "full": PLAIN | {"_ng_task_index": 0, "_ng_rollout_index": 0, "agent_ref": {"name": "a"}},
    "without indices": PLAIN,
    "input as a string": _with_input("Q?"),
    "input in parts": _with_input(
        [{"role": "user", "content": [{"type": "input_text", "text": "Q?"}]}]
    ),
    "legacy top-level output": {k: v for k, v in PLAIN.items() if k != "response"}
    | {"output": [{"type": "message", "content": [{"text": "A"}]}]},
    "output as a string": PLAIN | {"response": {"output": "A"}},
    "content as a string": PLAIN | {"response": {"output": [said("") | {"content": "A"}]}},
    "a chat completion": PLAIN | {"response": {"choices": [{"message": ANSWER}]}},
    "agent states": PLAIN | {"response": {"output": [[USER], [USER, said("A")]]}}
    | {"responses_create_params": {"input": []}},
    "an environment that opens": PLAIN | {"response": {"output": [USER, said("A")]}}
    | {"responses_create_params": {"input": []}},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_messages(form: str) -> None:
    assert messages(FORMS[form]) == [USER, ANSWER]


def test_instructions_and_developer_messages_are_system_messages() -> None:
    given = _with_input([{"role": "developer", "content": "Be brief."}, USER])
    given["responses_create_params"]["instructions"] = "Be kind."
    assert [m["role"] for m in messages(given)] == ["system", "system", "user", "assistant"]


def test_the_items_of_one_call_are_one_message_and_results_name_their_tool() -> None:
    output = [thought("hm"), said("I'll look."), called(), called(call_id="call_2"), answered(),
              answered("rain", "call_2"), thought("so"), said("Sunny.")]  # fmt: skip
    done = messages(row("Q?", output))[1:]
    assert [m["role"] for m in done] == ["assistant", "tool", "tool", "assistant"]
    assert done[0]["content"] == "I'll look."
    assert done[0]["reasoning_content"] == "hm"
    assert [call["id"] for call in done[0]["tool_calls"]] == ["call_1", "call_2"]
    assert done[0]["tool_calls"][0]["function"] == {
        "name": "weather", "arguments": {"city": "Rome"}
    }  # fmt: skip
    result = {"role": "tool", "tool_call_id": "call_2", "content": "rain", "name": "weather"}
    assert done[2] == result
    assert done[3] == {"role": "assistant", "content": "Sunny.", "reasoning_content": "so"}


def test_token_fields_end_a_call_so_two_answers_stay_two_messages() -> None:
    tokens = {"prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [-1.0]}
    apart = messages(row("Q?", [thought("a") | tokens, said("A") | tokens]))[1:]
    assert [m["content"] for m in apart] == ["", "A"]
    assert len(messages(row("Q?", [said("A"), said("B")]))) == 3


def test_reasoning_goes_where_the_style_says() -> None:
    output = [thought("hm"), said("A")]
    one = row("Q?", output)
    assert messages(one, Style("think"))[-1]["content"] == "<think>\nhm\n</think>\n\nA"
    assert messages(one, Style("drop"))[-1] == ANSWER
    assert messages(one, Style("field", "thinking"))[-1] == ANSWER | {"thinking": "hm"}


def test_reasoning_only_and_encrypted_reasoning_invent_no_text() -> None:
    assert messages(row("Q?", [thought("hm")]))[-1]["content"] == ""
    assert messages(row("Q?", [thought("hm")]))[-1]["reasoning_content"] == "hm"
    hidden = {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    assert messages(row("Q?", [hidden, said("A")]))[-1] == ANSWER


def test_refusals_are_what_was_said() -> None:
    no = said("") | {"content": [{"type": "refusal", "refusal": "No."}]}
    assert messages(row("Q?", [no]))[-1]["content"] == "No."


@pytest.mark.parametrize("arguments", ['{"city": ', "", '["a"]'])
def test_arguments_that_are_no_json_object_stay_what_was_sampled(arguments: str) -> None:
    call = messages(row("Q?", [called(arguments)]), Style(arguments="string"))[-1]["tool_calls"][0]
    assert call["function"]["arguments"] == arguments


def test_legacy_calls_without_ids_are_matched_in_order() -> None:
    calls = [{k: v for k, v in called().items() if k not in ("id", "call_id")}] * 2
    results = [{"type": "function_call_output", "output": text} for text in ("one", "two")]
    done = messages(row("Q?", [*calls, *results, said("A")]))
    ids = [call["id"] for call in done[1]["tool_calls"]]
    assert [m["tool_call_id"] for m in done if m["role"] == "tool"] == ids


def test_chat_messages_as_items_keep_their_tool_calls() -> None:
    call = {"id": "c", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}  # fmt: skip
    history = [USER, {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "c", "content": "sunny"}, USER]  # fmt: skip
    done = conversation_of(row(history, "A"), Prompts(Style()))
    assert [m["role"] for m in done.prompt.messages] == ["user", "assistant", "tool", "user"]
    assert done.prompt.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert done.prompt.messages[2]["name"] == "weather"


def test_tools_come_in_chat_form_whatever_form_they_had() -> None:
    one = copy.deepcopy(PLAIN)
    chat = {"type": "function", "function": {k: TOOL[k] for k in ("name", "description",
            "parameters")}}  # fmt: skip
    one["responses_create_params"]["tools"] = [TOOL, chat]
    assert conversation_of(one, Prompts(Style())).tools == [chat, chat]


def test_images_stay_in_prompts() -> None:
    parts = [{"type": "input_text", "text": "Look:"},
             {"type": "input_image", "image_url": "data:x", "detail": "auto"}]  # fmt: skip
    done = messages(_with_input([{"role": "user", "content": parts}]))
    assert done[0]["content"] == [
        {"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "data:x"}}
    ]  # fmt: skip


BAD = {
    "$.response.output[1]": row("Q?", [said("A"), {"type": "web_search_call"}]),
    "$.response.output[0].content[0]": row("Q?", [said("") | {"content": [{"type": "audio"}]}]),
    "$.response.output[0].name": row("Q?", [called() | {"name": None}]),
    "$.response.output[0]": row("Q?", [7]),
    "$.response": {k: v for k, v in PLAIN.items() if k != "response"},
    "$.responses_create_params": {k: v for k, v in PLAIN.items() if k != "responses_create_params"},
    "$.responses_create_params.input": _with_input([]),
    "$.responses_create_params.input[0].content": _with_input([{"role": "user", "content": 3}]),
}


@pytest.mark.parametrize("at", BAD)
def test_what_has_no_chat_form_is_refused_with_its_path(at: str) -> None:
    with pytest.raises(BadRowError) as error:
        conversation_of(BAD[at], Prompts(Style()))
    assert error.value.at == at


def test_a_row_is_not_changed_by_reading_it() -> None:
    for one in (*FORMS.values(), row("Q?", [thought("hm"), called(), answered(), said("A")])):
        before = copy.deepcopy(one)
        conversation_of(one, Prompts(Style()))
        assert one == before
