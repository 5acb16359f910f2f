"""What is sent: built right from anything a framework has, and without token data."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbridge.contracts.wire import TOKEN_FIELDS
from rlbridge.gym.bodies import responses_object, to_json, verify_body
from rlbridge.gym.embedded.models import ResponseObject
from rlbridge.gym.identity import request_key
from rlbridge.testing import make_message, make_response, make_row

TEXT = st.text(max_size=20)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "user", "system"]), "content": TEXT | st.none()}
)
TOOL_CALL = st.fixed_dictionaries(
    {"id": TEXT, "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT | st.none()})}
)
CALLING = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none(), "tool_calls": st.lists(TOOL_CALL)}
)
ANSWERING = st.fixed_dictionaries({"role": st.just("tool"), "content": TEXT, "tool_call_id": TEXT})
RESPONSES = TEXT | st.lists(MESSAGE | CALLING | ANSWERING, max_size=5)


@given(RESPONSES)
def test_any_text_and_any_chat_is_a_response_that_servers_accept(response: Any) -> None:
    ResponseObject.model_validate(responses_object(response))


@given(RESPONSES)
def test_what_the_caller_hands_in_is_left_as_it_was(response: Any) -> None:
    before = copy.deepcopy(response)
    verify_body(make_row(), response)
    assert response == before


@pytest.mark.parametrize(
    "capture_name",
    ["mcqa__verify_correct_minimal", "math__verify_reasoning_plus_message"],
)
def test_a_right_request_is_sent_as_it_is(capture: Any, capture_name: str) -> None:
    request = capture(capture_name)["request"]["body"]
    row = {key: value for key, value in request.items() if key != "response"}
    body = verify_body(row, request["response"])
    for key, value in request["response"].items():
        if key != "output":
            assert body["response"][key] == value
    assert len(body["response"]["output"]) == len(request["response"]["output"])


@pytest.mark.parametrize(
    ("item", "fixed"),
    [
        ({"type": "function_call", "name": "f", "arguments": {"a": 1}}, "arguments"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "call_id"),
        ({"type": "message", "role": "assistant", "content": "4"}, "content"),
        (
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "4"}],
            },
            "id",
        ),
        ({"type": "reasoning"}, "summary"),
        ({"type": "function_call_output", "call_id": "c", "output": {"a": 1}}, "output"),
    ],
)
def test_known_traps_of_the_wire_are_mended(item: dict[str, Any], fixed: str) -> None:
    response = responses_object([item])
    ResponseObject.model_validate(response)
    assert response["output"][0][fixed] is not None


def test_no_token_field_is_sent_wherever_it_stood() -> None:
    tokens = {field: [1, 2, 3] for field in TOKEN_FIELDS}
    row = make_row()
    row["responses_create_params"]["input"].append(make_message("earlier", **tokens))
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c", **tokens}
    body = verify_body(row, make_response(make_message("4", **tokens), call))
    sent = to_json(body).decode()
    assert not any(field in sent for field in TOKEN_FIELDS)
    assert "earlier" in sent


@given(TEXT, TEXT)
def test_two_texts_are_one_question_only_if_they_are_equal(one: str, other: str) -> None:
    def key(response: Any) -> bytes:
        body = verify_body(make_row(expected_answer="4"), response)
        return request_key("http://gym", body, to_json(body))

    assert (key(one) == key(other)) == (one == other)
    assert (key(make_response(one)) == key(make_response(other))) == (one == other)


def test_call_ids_count_by_order_only() -> None:
    def key(first: str, second: str) -> bytes:
        items = [
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": first},
            {"type": "function_call_output", "output": "1", "call_id": second},
        ]
        body = verify_body(make_row(), make_response(*items))
        return request_key("http://gym", body, to_json(body))

    assert key("a", "a") == key("b", "b")
    assert key("a", "a") != key("a", "b")


def test_numpy_values_of_a_data_frame_are_sent() -> None:
    import numpy as np

    row = make_row(expected_answer="4", index=np.int64(3), scores=np.array([1.0, 2.0]))
    assert json.loads(to_json(verify_body(row, "4")))["scores"] == [1.0, 2.0]
