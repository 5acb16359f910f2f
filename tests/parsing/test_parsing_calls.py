"""What each format's marks give, whole; what is malformed stays content, with the reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbridge.parsing.message import ToolCall, call_id
from rlbridge.parsing.stream import parse
from rlbridge.parsing.style import ReasoningStyle, Style, ToolStyle

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "count": {"type": "integer"},
                    "name": {"type": "string"},
                    "any": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                    "kind": {"enum": ["1", "2"]},
                },
            },
        },
    }
]
XML = (
    "<tool_call>\n<function=f>\n<parameter=count>\n5\n</parameter>\n<parameter=name>\n5\n"
    "</parameter>\n<parameter=any>\n5\n</parameter>\n<parameter=kind>\n1\n</parameter>\n"
    "<parameter=new>\n5\n</parameter>\n</function>\n</tool_call>"
)
GLM = (
    "<tool_call>f\n<arg_key>count</arg_key>\n<arg_value>5</arg_value>\n"
    "<arg_key>name</arg_key>\n<arg_value>5</arg_value>\n</tool_call>"
)
DEEPSEEK_V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"a":  1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n'
    "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
DEEPSEEK_V31 = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a":  1}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"a":  1}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>'
    "{}<|tool_call_end|><|tool_calls_section_end|>"
)


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (
            ToolStyle.HERMES,
            '<tool_call>\n{"name": "f", "arguments": {"a":  1}}\n</tool_call>\n'
            '<tool_call>\n{"arguments": {}, "name": "g"}\n</tool_call>',
        ),
        (
            ToolStyle.LLAMA,
            '{"name": "f", "parameters": {"a":  1}}; {"name": "g", "parameters": {}}',
        ),
        (
            ToolStyle.LLAMA,
            '<|python_tag|>{"name": "f", "parameters": {"a":  1}};{"name": "g", "parameters": {}}',
        ),
        (
            ToolStyle.MISTRAL,
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a":  1}}, {"name": "g", "arguments": {}}]',
        ),
        (ToolStyle.MISTRAL, '[TOOL_CALLS]f[ARGS]{"a":  1}[TOOL_CALLS]g{}'),
        (ToolStyle.DEEPSEEK, DEEPSEEK_V3),
        (ToolStyle.DEEPSEEK, DEEPSEEK_V31),
        (ToolStyle.KIMI, KIMI),
    ],
)
def test_json_formats_give_their_calls_with_the_arguments_as_written(
    style: ToolStyle, text: str
) -> None:
    message = parse(text, Style(style))
    assert [(call.name, call.arguments) for call in message.tool_calls] == [
        ("f", '{"a":  1}'),
        ("g", "{}"),
    ]
    assert message.content is None
    assert message.problems == ()


def test_ids_the_model_wrote_are_kept() -> None:
    for style, text, written in (
        (ToolStyle.KIMI, KIMI, "functions.f:0"),
        (
            ToolStyle.MISTRAL,
            '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abc123def"}]',
            "abc123def",
        ),
        (ToolStyle.MISTRAL, "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}", "abc123def"),
    ):
        assert parse(text, Style(style)).tool_calls[0].call_id == written


def test_values_without_quotes_get_their_types_from_the_tools_schema() -> None:
    (call,) = parse(XML, Style(ToolStyle.QWEN_XML), tools=TOOLS).tool_calls
    assert json.loads(call.arguments) == {
        "count": 5, "name": "5", "any": 5, "kind": "1", "new": "5",
    }  # fmt: skip
    (call,) = parse(GLM, Style(ToolStyle.GLM), tools=TOOLS).tool_calls
    assert json.loads(call.arguments) == {"count": 5, "name": "5"}


def test_a_value_keeps_its_own_newlines_and_angle_brackets() -> None:
    text = (
        "<function=f>\n<parameter=name>\n\nif a < b:\n  <function=x>\n\n</parameter>\n</function>"
    )
    (call,) = parse(text, Style(ToolStyle.QWEN_XML), tools=TOOLS).tool_calls
    assert json.loads(call.arguments) == {"name": "\nif a < b:\n  <function=x>\n"}


def test_pythonic_calls_become_json() -> None:
    text = "[f(a=']', b=[1, {'c': None}], d=True), m.g()]"
    message = parse(text, Style(ToolStyle.PYTHONIC))
    assert [(call.name, json.loads(call.arguments)) for call in message.tool_calls] == [
        ("f", {"a": "]", "b": [1, {"c": None}], "d": True}),
        ("m.g", {}),
    ]
    tagged = parse(f"Well: <|python_start|>{text}<|python_end|>", Style(ToolStyle.PYTHONIC))
    assert tagged.tool_calls == message.tool_calls
    assert tagged.content == "Well:"


def test_a_closing_mark_inside_a_json_string_ends_nothing() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"s": "</tool_call>}\\""}}</tool_call>'
    (call,) = parse(text, Style(ToolStyle.HERMES)).tool_calls
    assert call.arguments == '{"s": "</tool_call>}\\""}'


def test_a_call_whose_closing_mark_a_stop_string_cut_is_a_call() -> None:
    for end in ("", "\n", "</tool", "</tool_call>"):
        text = '<tool_call>{"name": "f", "arguments": {}}' + end
        assert parse(text, Style(ToolStyle.HERMES)).tool_calls == (ToolCall("f", "{}"),)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("oops", "no JSON follows"),
        ('{"name": "f", "arguments": {}', "not closed"),
        ('{"name": "f", "arguments": {}}}', "not followed by"),
        ('{"name": "f", "arguments": {"a": }}', "can't be read"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN is no JSON"),
        ('{"name": "f"}', "no arguments"),
        ('{"arguments": {}}', "no name"),
        ('{"name": 5, "arguments": {}}', "no name"),
        ('{"name": "f", "arguments": [1]}', "no JSON object"),
        ('{"name": "f", "arguments": "x"}', "can't be read"),
        ('{"name": "f", "arguments": ' + '{"a":' * 9_999 + "1" + "}" * 9_999 + "}", "too deep"),
    ],
)
def test_a_malformed_call_is_content_with_the_reason_and_its_neighbour_a_call(
    inside: str, reason: str
) -> None:
    good = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    for bad in (f"<tool_call>{inside}</tool_call>", f"<tool_call>{inside}"):
        message = parse(f"{good}{bad}", Style(ToolStyle.HERMES))
        assert message.tool_calls == (ToolCall("g", "{}"),)
        assert message.content == bad
        assert len(message.problems) == 1
        assert "<tool_call>" in message.problems[0]
    assert reason in message.problems[0] or "not closed" in message.problems[0]
    assert reason in parse(f"<tool_call>{inside}", Style(ToolStyle.HERMES)).problems[0]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (ToolStyle.QWEN_XML, "<tool_call><function=f><parameter=a>1</function></tool_call>"),
        (ToolStyle.QWEN_XML, "<tool_call>{}</tool_call>"),
        (ToolStyle.QWEN_XML, "<function=>"),
        (ToolStyle.GLM, "<tool_call>f<arg_key>a</arg_key>1</tool_call>"),
        (ToolStyle.GLM, "<tool_call></tool_call>"),
        (ToolStyle.MISTRAL, "[TOOL_CALLS][]"),
        (ToolStyle.MISTRAL, "[TOOL_CALLS]f(1)"),
        (ToolStyle.MISTRAL, "[TOOL_CALLS]" + "f" * 200 + "{}"),
        (ToolStyle.LLAMA, "<|python_tag|>print(1)"),
        (ToolStyle.DEEPSEEK, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁call▁end｜>"),
        (ToolStyle.KIMI, "<|tool_call_begin|>f<|tool_call_argument_begin|>{}<|tool_call_end|>"),
        (ToolStyle.PYTHONIC, "[f(a=g(1))]"),
        (ToolStyle.PYTHONIC, "[f(1)]"),
        (ToolStyle.PYTHONIC, "[f(**x)]"),
        (ToolStyle.PYTHONIC, "[f(a={1})]"),
        (ToolStyle.PYTHONIC, "[f(a=1e999)]"),
        (ToolStyle.PYTHONIC, "[f(a='"),
        (ToolStyle.PYTHONIC, "[f(a=1), 5]"),
    ],
)
def test_what_a_format_does_not_allow_stays_content_byte_for_byte(
    style: ToolStyle, text: str
) -> None:
    message = parse(text, Style(style))
    assert message.content == text
    assert message.tool_calls == ()
    assert message.problems


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (ToolStyle.LLAMA, '{"answer": 5}'),
        (ToolStyle.LLAMA, '{"name": "Ada"}'),
        (ToolStyle.LLAMA, 'See {"name": "f", "parameters": {}}'),
        (ToolStyle.PYTHONIC, "[1] says [f(a=1)]"),
        (ToolStyle.PYTHONIC, "[]"),
        (ToolStyle.NONE, '<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
    ],
)
def test_answers_that_only_look_like_calls_are_content_without_complaint(
    style: ToolStyle, text: str
) -> None:
    message = parse(text, Style(style))
    assert message.content == text
    assert message.problems == ()
    assert message.tool_calls == ()


def test_reasoning_is_read_whoever_wrote_the_opening_mark() -> None:
    style = Style(ToolStyle.HERMES, ReasoningStyle.THINK)
    for text, opened in (
        ("<think>\nhm\n</think>\n\nHi", False),
        ("\n<think>hm</think>Hi", False),
        ("hm\n</think>\n\nHi", True),
    ):
        message = parse(text, style, opened=opened)
        assert (message.reasoning, message.content) == ("hm", "Hi")
        assert message.reasoning_closed
    cut = parse("<think>hm\n", style)
    assert (cut.reasoning, cut.content, cut.reasoning_closed) == ("hm\n", None, False)
    empty = parse("<think>\n\n</think>\n\nHi", style)
    assert (empty.reasoning, empty.content) == ("", "Hi")


def test_text_without_the_opening_mark_is_never_taken_for_reasoning() -> None:
    style = Style(ToolStyle.HERMES, ReasoningStyle.THINK)
    for text in ("Hi", "Hi</think>there", "Hi <think>x</think>", "<thin"):
        message = parse(text, style)
        assert (message.reasoning, message.content) == (None, text)


def test_a_call_inside_the_reasoning_is_a_thought() -> None:
    draft = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    message = parse(f"<think>{draft}</think>{draft}", Style(ToolStyle.HERMES, ReasoningStyle.THINK))
    assert message.reasoning == draft
    assert message.tool_calls == (ToolCall("f", "{}"),)


def test_content_around_calls_is_kept_apart() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    message = parse(f"Before\n{call}\nAfter\n", Style(ToolStyle.HERMES))
    assert message.content == "Before\nAfter\n"
    assert parse(f"\n{call}\n", Style(ToolStyle.HERMES)).content is None


def test_call_ids_fit_every_template_and_repeat_for_the_same_answer() -> None:
    assert call_id("a", 0) == call_id("a", 0) != call_id("a", 1)
    assert len(call_id("a", 0)) == 9
    assert call_id("a", 0).isalnum()
    chat = parse(XML, Style(ToolStyle.QWEN_XML), tools=TOOLS).as_chat("a")
    assert chat["tool_calls"][0]["id"] == call_id("a", 0)
    assert chat["content"] is None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    arguments=st.dictionaries(st.text(), JSON_VALUES, max_size=4),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
)
def test_arguments_stay_byte_for_byte_in_every_json_format(
    arguments: dict[str, object], ascii_only: bool, indent: int | None
) -> None:
    source = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    for style, text in (
        (ToolStyle.HERMES, f'<tool_call>{{"name": "f", "arguments": {source}}}</tool_call>'),
        (ToolStyle.LLAMA, f'{{"name": "f", "parameters" : {source} }}'),
        (ToolStyle.MISTRAL, f'[TOOL_CALLS][ {{"name": "f", "arguments":{source}}} ]'),
        (ToolStyle.MISTRAL, f"[TOOL_CALLS]f{source}"),
        (ToolStyle.DEEPSEEK, f"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{source}<｜tool▁call▁end｜>"),
        (
            ToolStyle.KIMI,
            f"<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{source}"
            "<|tool_call_end|>",
        ),
    ):
        (call,) = parse(text, Style(style)).tool_calls
        assert call.arguments == source
