"""Conversations with three Gym environments that the tiny model learns by heart.

Sampled greedily it then calls the right tools and gives an answer that a real verifier judges,
so that two ways to the same policy can be compared by their rewards.
"""

from typing import Any

from rlbridge.testing import make_row

Message = dict[str, Any]


def _asked(text: str) -> Message:
    return {"role": "user", "content": text}


def _called(thought: str, name: str, arguments: dict[str, Any]) -> Message:
    call = {"type": "function", "id": "c", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": [call]}


def _told(text: str) -> Message:
    return {"role": "tool", "content": text}


def _said(thought: str, text: str) -> Message:
    return {"role": "assistant", "content": text, "reasoning_content": thought}


def _tool(name: str, **fields: str) -> dict[str, Any]:
    properties = {field: {"type": kind, "description": ""} for field, kind in fields.items()}
    schema = {"type": "object", "properties": properties, "required": [*fields],
              "additionalProperties": False}  # fmt: skip
    return {"name": name, "parameters": schema, "strict": None, "type": "function",
            "description": ""}  # fmt: skip


STEPS = 200  # of training, after which it knows them
COUNTER_TOOLS = [_tool("increment_counter", count="integer")]
WEATHER_TOOLS = [_tool("get_weather", city="string")]
RIGHT, WRONG = "Which letter is right?", "Which letter is wrong?"
COUNT = "add three to the count"
WEATHER = "what is it like in Paris?"

TALKS: dict[str, tuple[list[Message], list[dict[str, Any]]]] = {
    "right": ([_asked(RIGHT), _said("the first one", "\\boxed{B}")], []),
    "wrong": ([_asked(WRONG), _said("the other one", "\\boxed{A}")], []),
    "counter": (
        [
            _asked(COUNT),
            _called("add it", "increment_counter", {"count": 3}),
            _told('{"success":true}'),
            _said("that is all", "The count is six."),
        ],
        COUNTER_TOOLS,
    ),
    "weather": (
        [
            _asked(WEATHER),
            _called("ask for it", "get_weather", {"city": "Paris"}),
            _told('{"city":"Paris","weather_description":"The weather in Paris is cold."}'),
            _said("now tell", "It is cold in Paris."),
        ],
        WEATHER_TOOLS,
    ),
}


def chat_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools of the Responses API in Chat form, in the order in which vLLM renders them."""
    names = ("name", "description", "parameters")
    return [{"type": "function", "function": {n: tool[n] for n in names}} for tool in tools]


LESSONS = [(talk, chat_tools(tools)) for talk, tools in TALKS.values()]


def rows() -> dict[str, list[dict[str, Any]]]:
    """Gym rows of the lessons, by the resources server that judges them."""
    letters = {
        "options": [{"A": "this"}, {"B": "that"}],
        "expected_answer": "B",
        "grading_mode": "strict_single_letter_boxed",
    }
    made = {
        "mcqa": [
            make_row(RIGHT, **letters, uuid="right"),
            make_row(WRONG, **letters, uuid="wrong"),
        ],
        "example_session_state_mgmt": [
            make_row(COUNT, initial_count=3, expected_count=6),
            make_row(COUNT, initial_count=3, expected_count=7),
        ],
        "example_single_tool_call": [make_row(WEATHER)],
    }
    tools = {"example_session_state_mgmt": COUNTER_TOOLS, "example_single_tool_call": WEATHER_TOOLS}
    for name, server in made.items():
        for row in server:
            params = row["responses_create_params"]
            params.update(temperature=0.0, max_output_tokens=96, tools=tools.get(name, []))
    return made
