"""The bridged prompt begins with what the engine had, and says what the template would say."""

import copy
import dataclasses
import functools
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.templates import (
    CHATML,
    COUNTING,
    HEADERS,
    INST,
    MODEL_ROLE,
    PLAIN,
    ROLE_ENDS,
    SPACED,
    THINK,
    Style,
)
from benchmarks.tokenizers import COMBINATIONS, KINDS, byte_bpe
from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import PromptSpan, Provenance, SampledSpan
from rlbridge.onpolicy.bridge import Bridge, Bridged, Close, bridge_by_renderer
from rlbridge.onpolicy.refusal import Refusal, RefusalReason
from rlbridge.onpolicy.renderer import renderer_for
from rlbridge.onpolicy.template import DUMMY_TOOLS, HISTORIES, NEW_MESSAGES


@functools.cache
def bridge(kind: str, style: Style) -> Bridge:
    return Bridge(KINDS[kind](style))


def encoded(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def text_of(tokenizer, messages, **options) -> str:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **options
    )


def call(prompt, sampled, **fields) -> Turn:
    span = prompt if isinstance(prompt, PromptSpan) else PromptSpan(prompt)
    return Turn(span, (SampledSpan(sampled, [-1.0] * len(sampled)),), **fields)


def asked(kind: str, style: Style, said: str, *, end: str | None, news=None, **fields) -> str:
    """What the bridge appends after an answer, as text."""
    tokenizer, made = KINDS[kind](style), bridge(kind, style)
    ids = encoded(tokenizer, said) + (encoded(tokenizer, end) if end else [])
    prompt = encoded(tokenizer, text_of(tokenizer, [{"role": "user", "content": "one"}]))
    done = made.next_prompt(
        call(prompt, ids, **fields), news or [{"role": "user", "content": "two"}]
    )
    assert isinstance(done, Bridged), done
    assert done.prompt.token_ids[: len(prompt) + len(ids)].tolist() == prompt + ids
    assert done.appended_from == len(prompt) + len(ids)
    return tokenizer.decode(done.prompt.token_ids[done.appended_from :].tolist())


REST = {
    CHATML: "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n",
    THINK: "\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n",
    HEADERS: "<|header|>user<|/header|>\n\ntwo<|eot|><|header|>assistant<|/header|>\n\n",
    MODEL_ROLE: "\n<start_of_turn>user\ntwo<end_of_turn>\n<start_of_turn>model\n",
    INST: "[INST] two [/INST]",
    SPACED: "\n### user: two<|end|>\n### assistant:",
}
ENDS = {
    CHATML: "<|im_end|>",
    THINK: "<|im_end|>",
    HEADERS: "<|eot|>",
    MODEL_ROLE: "<end_of_turn>",
    INST: "</s>",
    SPACED: "<|end|>",
}


@pytest.mark.parametrize("style", REST, ids=lambda style: style.name)
def test_a_sampled_turn_end_is_not_written_again(style: Style) -> None:
    written = asked("byte_bpe", style, "ok", end=ENDS[style])
    assert written == REST[style].replace("two<|end|>", "two <|end|>")


@pytest.mark.parametrize("style", REST, ids=lambda style: style.name)
def test_a_truncated_turn_gets_the_turn_end_it_lacks(style: Style) -> None:
    space = " " if style is SPACED else ""
    written = asked("byte_bpe", style, "ok", end=None, finish=FinishReason.LENGTH)
    assert written == space + ENDS[style] + REST[style].replace("two<|end|>", "two <|end|>")


def test_a_secondary_end_of_sequence_stands_for_the_turn_end() -> None:
    tokenizer = byte_bpe(CHATML)
    second = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    made = Bridge(tokenizer, ends=[second])
    done = made.next_prompt(call([1], [300, second]), [{"role": "user", "content": "two"}])
    assert isinstance(done, Bridged)
    assert done.close is Close.SAMPLED
    assert tokenizer.decode(done.prompt.token_ids[3:].tolist()) == REST[CHATML]


def test_without_a_turn_end_the_next_header_is_it() -> None:
    rest = "\ntwo<|assistant|>\n"
    assert asked("byte_bpe", ROLE_ENDS, "ok", end="<|user|>") == rest
    assert asked("byte_bpe", ROLE_ENDS, "ok", end=None) == "<|user|>" + rest
    assert asked("byte_bpe", ROLE_ENDS, "ok", end="<|endoftext|>") == "<|user|>" + rest
    tool = [{"role": "tool", "content": "two"}]
    assert asked("byte_bpe", ROLE_ENDS, "ok", end="<|observation|>", news=tool) == rest


def test_a_stop_string_that_begins_the_tail_is_not_written_twice() -> None:
    fields = {"finish": FinishReason.STOP, "stop_reason": "\nUser:"}
    assert asked("byte_bpe", PLAIN, "ok\nUser:", end=None, **fields) == " two\nAssistant:"
    assert asked("byte_bpe", PLAIN, "ok", end=None) == "\nUser: two\nAssistant:"


def test_a_tag_in_the_new_message_is_not_taken_for_the_sampled_one() -> None:
    """Without a turn end, a truncated answer may end in a tag that the user writes too."""
    style = dataclasses.replace(PLAIN, specials=(*PLAIN.specials, "</tag>"))
    written = asked(
        "byte_bpe", style, "ok</tag>", end=None, news=[{"role": "user", "content": "</tag>x"}]
    )
    assert written == "\nUser: </tag>x\nAssistant:"


def test_no_space_is_put_before_the_appended_text() -> None:
    assert asked("sentencepiece_like", PLAIN, "ok", end=None) == "\nUser: two\nAssistant:"


def test_provenance_tells_the_added_turn_end_from_the_rest() -> None:
    tokenizer = byte_bpe(CHATML)
    done = bridge("byte_bpe", CHATML).next_prompt(
        call([5], [300]), [{"role": "user", "content": "x"}]
    )
    assert isinstance(done, Bridged)
    codes = done.prompt.provenance.tolist()
    assert codes[:3] == [Provenance.PROMPT, Provenance.SAMPLED, Provenance.REPAIRED]
    assert set(codes[3:]) == {Provenance.BRIDGE}
    assert done.prompt.token_ids[2] == tokenizer.eos_token_id


def test_tool_results_of_one_call_share_a_turn_where_the_template_says_so() -> None:
    news = [
        {"role": "tool", "tool_call_id": "a", "content": "A"},
        {"role": "tool", "tool_call_id": "b", "content": "B"},
    ]
    assert asked("byte_bpe", THINK, "ok", end="<|im_end|>", news=news) == (
        "\n<|im_start|>user\n<tool_response>\nA\n</tool_response>\n<tool_response>\nB\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_are_rendered_again_only_where_the_tail_holds_them() -> None:
    for style, expected in ((INST, True), (CHATML, False), (THINK, False)):
        tokenizer = byte_bpe(style)
        turn = call([1], encoded(tokenizer, "ok" + ENDS[style]))
        done = bridge("byte_bpe", style).next_prompt(
            turn, [{"role": "user", "content": "x"}], tools=DUMMY_TOOLS
        )
        assert isinstance(done, Bridged)
        written = tokenizer.decode(done.prompt.token_ids[done.appended_from :].tolist())
        assert ("lookup" in written) is expected


@pytest.mark.parametrize(
    ("news", "reason"),
    [
        ([], RefusalReason.NO_MESSAGES),
        ([{"role": "assistant", "content": "x"}], RefusalReason.ASSISTANT_MESSAGE),
        ([{"role": "user", "content": "x"}], RefusalReason.TEMPLATE),
    ],
)
def test_what_cannot_be_proven_is_refused_with_a_reason(news, reason) -> None:
    done = bridge("byte_bpe", COUNTING).next_prompt(call([1], [300]), news)
    assert isinstance(done, Refusal)
    assert done.reason is reason
    assert done.detail


def test_a_role_the_template_cannot_render_is_refused_in_its_own_words() -> None:
    made = bridge("byte_bpe", MODEL_ROLE)
    done = made.next_prompt(call([1], [300]), [{"role": "system", "content": "x"}])
    assert isinstance(done, Refusal)
    assert "System role not supported" in done.detail


def test_the_proof_tries_every_role_after_every_history() -> None:
    checks = bridge("byte_bpe", CHATML).checks
    assert {(c.role, c.feature) for c in checks} == {
        (r, f) for r in NEW_MESSAGES for f in HISTORIES
    }
    broken = [c for c in bridge("byte_bpe", THINK).checks if not c.prefix_preserved and c.renders]
    assert {(c.role, c.feature) for c in broken} == {("user", "thinking")}


def test_a_template_that_writes_the_functions_name_must_be_told_it() -> None:
    written = "'<|im_start|>' + m.role + ' ' + (m.name or messages[loop.index0 - 1].tool_calls[0]"
    named = dataclasses.replace(
        CHATML,
        name="named",
        template=CHATML.template.replace(
            "'<|im_start|>' + m.role",
            f"({written}.function.name) if m.role == 'tool' else '<|im_start|>' + m.role)",
        ),
    )
    made = Bridge(byte_bpe(named))
    turn = call([1], [300, 0])
    unnamed = {"role": "tool", "tool_call_id": "c", "content": "r"}
    done = made.next_prompt(turn, [unnamed])
    assert isinstance(done, Refusal)
    assert "give the message its name" in done.detail
    done = made.next_prompt(turn, [unnamed | {"name": "weather"}])
    assert isinstance(done, Bridged)
    tail = byte_bpe(named).decode(done.prompt.token_ids[3:].tolist())
    assert tail.startswith("\n<|im_start|>tool weather\nr")


class Rendered:
    def __init__(self, ids):
        self.token_ids = ids


class FakeRenderer:
    def __init__(self, answer):
        self.answer = answer

    def bridge_to_next_turn(self, prompt, sampled, new_messages, *, tools=None):
        return self.answer and Rendered(self.answer(prompt, sampled))


def test_a_renderer_is_asked_first_and_checked() -> None:
    news = [{"role": "user", "content": "two"}]
    turn = call([1, 2], [3, 4])
    good = FakeRenderer(lambda p, s: [*p, *s, 9])
    done = Bridge(byte_bpe(CHATML), renderer=good).next_prompt(turn, news)
    assert isinstance(done, Bridged)
    assert done.prompt.token_ids.tolist() == [1, 2, 3, 4, 9]
    # One that cuts sampled tokens is overruled by the template's own proof.
    cutting = FakeRenderer(lambda p, s: [*p, *s[:1], 9, 9])
    assert isinstance(bridge_by_renderer(cutting, turn, news), Refusal)
    done = Bridge(byte_bpe(CHATML), renderer=cutting).next_prompt(turn, news)
    assert isinstance(done, Bridged)
    assert done.prompt.token_ids[:4].tolist() == [1, 2, 3, 4]
    assert isinstance(bridge_by_renderer(FakeRenderer(None), turn, news), Refusal)


def test_the_real_qwen3_renderer_and_the_template_proof_agree() -> None:
    renderers = pytest.importorskip("renderers")
    tags = ("<tool_response>", "</tool_response>")
    style = dataclasses.replace(THINK, specials=(*THINK.specials, *tags))
    tokenizer = byte_bpe(style)
    renderer = renderers.create_renderer(tokenizer, renderers.Qwen3RendererConfig(
        thinking_retention="all"))  # fmt: skip
    turn = call(encoded(tokenizer, "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"),
                encoded(tokenizer, "ok<|im_end|>"))  # fmt: skip
    news = [{"role": "user", "content": "two"}]
    theirs = bridge_by_renderer(renderer, turn, news)
    ours = bridge("byte_bpe", style).next_prompt(turn, news)
    assert isinstance(theirs, Bridged)
    assert isinstance(ours, Bridged)
    assert theirs.prompt.token_ids.tolist() == ours.prompt.token_ids.tolist()


SAID = st.one_of(
    st.text(max_size=20),
    st.text(string.ascii_lowercase + " \n", max_size=20),
    st.sampled_from(["", "\n\nx", " x ", "<think>a</think>b", "naïve 🙂", '{"a": 1}']),
)
NEWS = st.text(string.ascii_letters + " \n\té🙂{}", min_size=1, max_size=16)


def as_written(style: Style, answer: str, *, ended: bool) -> tuple[str, bool]:
    """The content that a template which adds a space turns into `answer`, and if there is one."""
    fits = True
    if style in {INST, SPACED, PLAIN}:
        answer, fits = answer[1:], answer.startswith(" ")
    if style is SPACED and ended:
        answer, fits = answer[:-1], fits and answer.endswith(" ")
    return answer, fits


@settings(max_examples=3500, deadline=None)
@given(
    combination=st.sampled_from(COMBINATIONS),
    turns=st.lists(st.tuples(SAID, NEWS, st.booleans(), st.booleans()), min_size=1, max_size=3),
)
def test_a_bridged_prompt_begins_with_the_last_and_reads_like_the_templates_own(
    combination: tuple[str, Style], turns: list[tuple[str, str, bool, bool]]
) -> None:
    kind, style = combination
    tokenizer, made = KINDS[kind](style), bridge(kind, style)
    messages = [{"role": "user", "content": "one"}]
    start = text_of(tokenizer, messages)
    prompt = PromptSpan(encoded(tokenizer, start))
    defined = True
    for said, news, ended, odd in turns:
        ids = [i for c in said for i in encoded(tokenizer, c)] if odd else encoded(tokenizer, said)
        before = tokenizer.decode(prompt.token_ids.tolist())
        read = tokenizer.decode([*prompt.token_ids.tolist(), *ids])
        end = encoded(tokenizer, made.template.turn_end) if ended else []
        sampled = [*ids, *end] or encoded(tokenizer, "x")
        turn = call(prompt, sampled)
        answer = read[len(before) :] if ids else ""
        written, fits = as_written(style, answer, ended=ended)
        messages.append({"role": "assistant", "content": written})
        messages.append({"role": "user", "content": news})
        done = made.next_prompt(turn, messages[-1:])
        assert isinstance(done, Bridged)
        assert done.prompt.token_ids[: len(turn.token_ids)].tolist() == turn.token_ids.tolist()
        own = text_of(tokenizer, messages)
        # Where the template writes the history as it was, and the text can be encoded at all.
        defined &= bool([*ids, *end]) and "\ufffd" not in read and read.startswith(before)
        defined &= fits and own.startswith(start + answer)
        same = tokenizer.decode(encoded(tokenizer, own))
        if defined:
            assert tokenizer.decode(done.prompt.token_ids.tolist()) == same
        prompt, start = done.prompt, own


def test_a_renderer_is_found_only_for_a_listed_model_that_writes_the_same() -> None:
    pytest.importorskip("renderers")
    tags = ("<tool_response>", "</tool_response>")
    listed = copy.deepcopy(byte_bpe(dataclasses.replace(THINK, specials=(*THINK.specials, *tags))))
    assert renderer_for(listed) is None  # its name is no published one
    listed.name_or_path = "Qwen/Qwen3-8B"
    found = renderer_for(listed)
    assert type(found).__name__ == "Qwen3Renderer"
    tokenizer_end = encoded(listed, "ok<|im_end|>")
    prompt = encoded(listed, text_of(listed, [{"role": "user", "content": "one"}]))
    done = Bridge(listed, renderer=found).next_prompt(
        call(prompt, tokenizer_end), [{"role": "tool", "content": "two"}]
    )
    assert isinstance(done, Bridged)
    known = prompt + tokenizer_end
    assert done.prompt.token_ids[: len(known)].tolist() == known
    listed.chat_template = CHATML.template.replace("assistant\\n", "helper\\n")
    assert renderer_for(listed) is None  # another template under the same name
    foreign = copy.deepcopy(byte_bpe(HEADERS))
    foreign.name_or_path = "Qwen/Qwen3-8B"
    assert renderer_for(foreign) is None  # another vocabulary


@settings(max_examples=800, deadline=None)
@given(
    combination=st.sampled_from([c for c in COMBINATIONS if c[1].tools]),
    results=st.lists(NEWS, min_size=1, max_size=3),
    ended=st.booleans(),
    then_user=st.booleans(),
)
def test_tool_results_are_appended_as_the_template_writes_them(
    combination: tuple[str, Style], results: list[str], ended: bool, then_user: bool
) -> None:
    kind, style = combination
    tokenizer, made = KINDS[kind](style), bridge(kind, style)
    calls = [
        {"id": f"call{i:05}", "type": "function",
         "function": {"name": "lookup", "arguments": {"key": "k"}}}
        for i in range(len(results))
    ]  # fmt: skip
    news = [
        {"role": "tool", "tool_call_id": call["id"], "name": "lookup", "content": text}
        for call, text in zip(calls, results, strict=True)
    ]
    news += [{"role": "user", "content": "two"}] if then_user else []
    end = encoded(tokenizer, made.template.turn_end) if ended else []
    turn = call([5, 6], [*encoded(tokenizer, "calling"), *end])
    done = made.next_prompt(turn, news)
    assert isinstance(done, Bridged)
    assert done.prompt.token_ids[: len(turn.token_ids)].tolist() == turn.token_ids.tolist()
    talk = [
        {"role": "system", "content": "s"} if style is CHATML else {"role": "user", "content": "z"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *news,
    ]
    own = tokenizer.decode(encoded(tokenizer, text_of(tokenizer, talk)))
    appended = tokenizer.decode(done.prompt.token_ids[done.appended_from :].tolist())
    assert appended.strip()
    assert own.endswith(appended)
    assert all(appended.count(text.strip()) for text in results)
