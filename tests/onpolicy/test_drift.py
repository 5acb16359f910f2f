"""Each kind of drift is told from the others, at the right place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.templates import CHATML, THINK
from benchmarks.tokenizers import byte_bpe
from rlbridge.onpolicy.drift import Drift, diagnose
from rlbridge.onpolicy.explanation import DriftKind, canonical_json, explain, without_thinking


def encoded(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def rendered(tokenizer, messages, prompt=True) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return encoded(tokenizer, text)


def chars(tokenizer, text: str) -> list[int]:
    return [i for char in text for i in encoded(tokenizer, char)]


USER = {"role": "user", "content": "first question"}
CALL = {"id": "c", "type": "function", "function": {"name": "lookup", "arguments": {"key": "ü"}}}


def drift_of(style, sampled, message, *, before=(), news="x", edit=None) -> Drift | None:
    """Drift of the prompt after one answer: `sampled` is what the engine has, `message` what the
    agent sends back."""
    tokenizer = byte_bpe(style)
    history = [*before, USER]
    start = rendered(tokenizer, history)
    ids = sampled(tokenizer) if callable(sampled) else encoded(tokenizer, sampled)
    known = [*start, *ids, tokenizer.eos_token_id]
    sent = [*(edit or history), {"role": "assistant", **message}, {"role": "user", "content": news}]
    return diagnose(known, rendered(tokenizer, sent), tokenizer, ends=[tokenizer.eos_token_id])


CASES = {
    DriftKind.MERGE: (CHATML, lambda t: chars(t, "water is long"), {"content": "water is long"}),
    DriftKind.WHITESPACE: (CHATML, "\n\nwater", {"content": "\n\nwater"}),
    DriftKind.SPECIAL_TOKEN: (
        THINK,
        lambda t: [*encoded(t, "a "), *chars(t, "<tool_call>"), *encoded(t, " b")],
        {"content": "a <tool_call> b"},
    ),
    DriftKind.INVALID_UTF8: (
        CHATML,
        lambda t: [*encoded(t, "a "), encoded(t, "🙂")[0], *encoded(t, " b")],
        {"content": "a \ufffd b"},
    ),
    DriftKind.THINKING_STRIPPED: (
        THINK,
        "<think>\nlong time\n</think>\n\nwater",
        {"content": "water", "reasoning_content": "long time"},
    ),
    DriftKind.TOOL_JSON: (
        THINK,
        '<tool_call>\n{"name":"lookup","arguments":{"key":"\\u00fc"}}\n</tool_call>',
        {"content": "", "tool_calls": [CALL]},
    ),
    DriftKind.TEXT_DROPPED: (CHATML, "water is long", {"content": "water"}),
    DriftKind.UNKNOWN: (CHATML, "water is long", {"content": "something else"}),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_kind_of_drift_is_told_from_the_others(kind: DriftKind) -> None:
    style, sampled, message = CASES[kind]
    drift = drift_of(style, sampled, message)
    assert drift is not None
    assert drift.kind is kind
    assert drift.message == 1
    assert drift.sampled


def test_a_split_is_a_sample_longer_than_the_tokenizer_would_choose() -> None:
    tokenizer = byte_bpe(CHATML)
    word = encoded(tokenizer, " water")
    assert len(word) == 1
    # The engine has " water" as one token in the middle of a word the tokenizer cuts elsewhere.
    known = [*rendered(tokenizer, [USER]), *encoded(tokenizer, "a")]
    split = diagnose([*known, *word, 2], [*known, *chars(tokenizer, " water"), 2, 5], tokenizer,
                     ends=[2])  # fmt: skip
    assert split is not None
    assert split.kind is DriftKind.SPLIT
    assert (split.known_length, split.rendered_length) == (1, 6)
    assert (split.known_text, split.rendered_text) == (" water", " water")
    assert split.at == len(known)


def test_an_edited_user_message_is_edited_history_and_not_ours() -> None:
    other = [{"role": "user", "content": "another question"}]
    drift = drift_of(CHATML, "water", {"content": "water"}, edit=other)
    assert drift is not None
    assert drift.kind is DriftKind.EDITED_HISTORY
    assert (drift.message, drift.sampled) == (0, False)


def test_messages_left_out_are_truncation() -> None:
    before = ({"role": "user", "content": "old"}, {"role": "assistant", "content": "older"})
    drift = drift_of(CHATML, "water", {"content": "water"}, before=before, edit=[USER])
    assert drift is not None
    assert drift.kind is DriftKind.TRUNCATED
    tokenizer = byte_bpe(CHATML)
    ids = rendered(tokenizer, [USER])
    cut = diagnose(ids, ids[:-3], tokenizer, ends=[tokenizer.eos_token_id])
    assert cut is not None
    assert (cut.kind, cut.at, cut.known_length) == (DriftKind.TRUNCATED, len(ids) - 3, 3)


def test_a_turn_cut_short_and_closed_by_the_template_is_no_drift() -> None:
    tokenizer = byte_bpe(CHATML)
    known = rendered(tokenizer, [USER]) + encoded(tokenizer, "water")
    sent = [USER, {"role": "assistant", "content": "water"}, USER]
    assert (
        diagnose(known, rendered(tokenizer, sent), tokenizer, ends=[tokenizer.eos_token_id]) is None
    )


@settings(max_examples=800, deadline=None)
@given(a=st.lists(st.integers(0, 600), max_size=30), b=st.lists(st.integers(0, 600), max_size=30))
def test_there_is_drift_exactly_where_the_first_difference_is(a: list[int], b: list[int]) -> None:
    tokenizer = byte_bpe(CHATML)
    drift = diagnose(a, b, tokenizer, ends=[tokenizer.eos_token_id])
    assert (drift is None) == (b[: len(a)] == a)
    if drift is not None:
        assert a[: drift.at] == b[: drift.at]
        assert a[drift.at : drift.at + 1] != b[drift.at : drift.at + 1]


@settings(max_examples=300, deadline=None)
@given(st.text(), st.text())
def test_a_text_is_explained_only_if_it_differs(a: str, b: str) -> None:
    assert (explain(a, b) is None) == (a == b)


def test_json_is_written_one_way_wherever_it_stands() -> None:
    assert canonical_json('x {"b": 1, "a": "\\u00fc"} {') == 'x {"a":"ü","b":1} {'
    assert canonical_json('{"arguments": "{\\"k\\": 1}"}') == canonical_json(
        '{"arguments":{"k":1}}'
    )


def test_reasoning_is_cut_even_if_its_opening_tag_was_in_the_prompt() -> None:
    assert without_thinking("assistant\nlong\n</think>\n\nwater") == "assistant\n\n\nwater"
    assert without_thinking("a<think>b</think>c") == "ac"
