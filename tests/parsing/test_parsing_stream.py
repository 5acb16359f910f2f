"""A text cut into pieces is read exactly as the whole, and nothing is said too early."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbridge.parsing.message import ParsedDelta, ToolCall
from rlbridge.parsing.stream import StreamParser, parse
from rlbridge.parsing.style import ReasoningStyle, Style, ToolStyle, detect, opens_reasoning

PIECES = [
    "Hi", " ", "\n", "\n\n", "{", "}", '"', "\\", ",", ";", "[", "]", "(", ")", "=", "'", "f", "1",
    '{"name": "f", "arguments": {"a": "}\\""}}', '{"name": "f", "parameters": {}}', '{"a": 1}',
    "<think>", "</think>", "<thi", "[THINK]", "[/THINK]",
    "<tool_call>", "</tool_call>", "</tool", "<function=f>", "</function>", "<parameter=a>",
    "</parameter>", "<arg_key>a</arg_key>", "<arg_value>", "</arg_value>",
    "<|python_tag|>", "<|python_start|>", "<|python_end|>", "[f(a='x'), g()]", "[f(",
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]",
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>", "function", "\n```json\n", "\n```",
    "<|tool_calls_section_begin|>", "<|tool_call_begin|>functions.f:0",
    "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>",
]  # fmt: skip
STYLES = [
    Style(tools, reasoning)
    for tools in ToolStyle
    for reasoning in (ReasoningStyle.NONE, ReasoningStyle.THINK)
]


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from(PIECES), max_size=14),
    st.lists(st.integers(0, 400), max_size=12),
    st.sampled_from(STYLES),
    st.booleans(),
)
def test_any_split_gives_the_message_of_the_whole(
    pieces: list[str], cuts: list[int], style: Style, opened: bool
) -> None:
    text = "".join(pieces)
    whole = parse(text, style, opened=opened)
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for parts in ([text[a:b] for a, b in pairwise(at)], list(text)):
        parser = StreamParser(style, opened=opened)
        deltas = [parser.feed(part) for part in parts] + [parser.finish()]
        assert parser.message == whole
        assert "".join(delta.reasoning for delta in deltas) == (whole.reasoning or "")
        assert "".join(delta.content for delta in deltas) == (whole.content or "")
        assert tuple(call for delta in deltas for call in delta.tool_calls) == whole.tool_calls


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from(list(ToolStyle)))
def test_text_without_a_call_stays_byte_for_byte(pieces: list[str], tools: ToolStyle) -> None:
    text = "".join(pieces)
    message = parse(text, Style(tools))
    if not message.tool_calls:
        assert (message.content or "") == text


def test_text_is_given_as_soon_as_it_can_be_no_mark() -> None:
    parser = StreamParser(Style(ToolStyle.HERMES, ReasoningStyle.THINK), opened=True)
    assert parser.feed("hm") == ParsedDelta(reasoning="hm")
    assert parser.feed("</th") == ParsedDelta()
    assert parser.feed("at's it") == ParsedDelta(reasoning="</that's it")
    assert parser.feed("</think>\n\n") == ParsedDelta()
    assert parser.feed("Hello <tool") == ParsedDelta(content="Hello")
    assert parser.feed("_box>") == ParsedDelta(content=" <tool_box>")
    call = '{"name": "f", "arguments": {}}'
    assert parser.feed(f"<tool_call>{call}</tool_call") == ParsedDelta()
    assert parser.feed(">") == ParsedDelta(tool_calls=(ToolCall("f", "{}"),))
    assert parser.finish() == ParsedDelta()


def test_an_answer_in_json_is_not_held_back_by_llamas_bare_calls() -> None:
    parser = StreamParser(Style(ToolStyle.LLAMA))
    assert parser.feed('{"ans') == ParsedDelta()
    assert parser.feed('wer": ').content == '{"answer":'


def test_a_long_call_in_small_pieces_costs_no_more_than_its_length() -> None:
    steps = 20_000
    parser = StreamParser(Style(ToolStyle.HERMES))
    parser.feed('<tool_call>{"name": "f", "arguments": {"code": "')
    for _ in range(steps):
        assert not parser.feed('print(\\"{x}\\")\\n')
    parser.feed('"}}</tool_call>')
    (call,) = parser.message.tool_calls
    assert call.arguments.count("print") == steps


TEMPLATES = {
    "{{ '<tool_call>\\n{\"name\": ' }}": Style(ToolStyle.HERMES),
    "<tool_call> <think> </think>": Style(ToolStyle.HERMES, ReasoningStyle.THINK),
    "<tool_call>\\n<function=x>\\n<parameter=y> </think>": Style(
        ToolStyle.QWEN_XML, ReasoningStyle.THINK
    ),
    "<tool_call>name<arg_key> <arg_value>": Style(ToolStyle.GLM),
    "[AVAILABLE_TOOLS] [TOOL_CALLS] [THINK]": Style(ToolStyle.MISTRAL, ReasoningStyle.MISTRAL),
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜> </think>": Style(
        ToolStyle.DEEPSEEK, ReasoningStyle.THINK
    ),
    "<|tool_calls_section_begin|><|tool_call_begin|>": Style(ToolStyle.KIMI),
    '<|start_header_id|>ipython {"name": function name, "parameters": dictionary}': Style(
        ToolStyle.LLAMA
    ),
    "[func_name1(params_name1=params_value1)]": Style(ToolStyle.PYTHONIC),
    "<|im_start|>{{ message.content }}<|im_end|>": Style(),
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_tells_the_style(template: str) -> None:
    assert detect(template) == TEMPLATES[template]


def test_a_prompt_that_ends_in_the_opening_mark_opens_the_reasoning() -> None:
    style = Style(reasoning=ReasoningStyle.THINK)
    assert opens_reasoning("<|im_start|>assistant\n<think>\n", style)
    assert not opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n", style)
    assert not opens_reasoning("<think>\n", Style())
