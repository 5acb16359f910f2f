"""The splice equals NeMo-RL's where that is right, and is right where that fails."""

import functools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.templates import CHATML, HEADERS, INST, ROLE_ENDS, SPACED, STYLES, THINK, Style
from benchmarks.tokenizers import KINDS, byte_bpe
from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import PromptSpan, Provenance, SampledSpan
from rlbridge.onpolicy.bridge import Bridge
from rlbridge.onpolicy.explanation import DriftKind
from rlbridge.onpolicy.refusal import Refusal, RefusalReason
from rlbridge.onpolicy.splice import Spliced, splice, splice_turn

EOS = 2


class Words:
    """A tokenizer of the facts' worked example: 1001 is the word that 220, 17 spell."""

    eos_token_id = EOS
    added_tokens_decoder = {EOS: "</s>"}  # noqa: RUF012
    texts = {1001: " 4", 220: " ", 17: "4", EOS: "</s>"}  # noqa: RUF012

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(self.texts.get(int(i), f"<{i}>") for i in token_ids)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise NotImplementedError


def one_eos(
    model: list[int], template_prefix: list[int], template: list[int], eos: int = EOS
) -> list[int]:
    """NeMo-RL's rule, from its description: keep the model's tokens up to their last EOS, go on
    at the last EOS of the template that is not behind the rendered prefix."""
    if not model:
        return template
    keep = model[:-1] if model[-1] == eos else model
    if len(template) <= len(template_prefix):
        raise AssertionError("the template did not grow")
    for at in range(len(template_prefix) - 1, -1, -1):
        if template[at] == eos:
            return keep + template[at:]
    raise AssertionError("no EOS")


def rendered(tokenizer, messages, prompt=True, **options) -> list[int]:
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, **options
    )
    return tokenizer.encode(text, add_special_tokens=False)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **fields) -> dict:
    return {"role": "assistant", "content": text, **fields}


def pieces(tokenizer, text: str) -> list[int]:
    """A non-canonical tokenization: every character encoded alone."""
    return [i for char in text for i in tokenizer.encode(char, add_special_tokens=False)]


def test_the_worked_example_of_nemo_rl_gives_its_result() -> None:
    model = [11, 12, 13, 40, 41, 220, 17, 2]
    template = [11, 12, 13, 40, 41, 1001, 2, 21, 22, 40, 41]
    spliced = splice(model, template, Words())
    assert isinstance(spliced, Spliced)
    assert spliced.token_ids.tolist() == [11, 12, 13, 40, 41, 220, 17, 2, 21, 22, 40, 41]
    assert (spliced.at, spliced.replaced, spliced.kept) == (5, 2, 3)
    assert one_eos(model, template[:7], template) == spliced.token_ids.tolist()


def test_nothing_known_leaves_the_rendering_as_it_is() -> None:
    spliced = splice([], [5, 6], Words())
    assert isinstance(spliced, Spliced)
    assert spliced.token_ids.tolist() == [5, 6]
    assert not spliced.changed


WORDS = st.text("ab c\nü", min_size=1, max_size=12).filter(lambda text: text.strip() == text)


@settings(max_examples=1200, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    style=st.sampled_from([CHATML, HEADERS, INST, THINK]),
    texts=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
    news=WORDS,
    truncated=st.booleans(),
    data=st.data(),
)
def test_splice_equals_nemo_rl_wherever_only_tokenization_differs(
    kind: str,
    style: Style,
    texts: list[tuple[str, str]],
    news: str,
    truncated: bool,
    data: st.DataObject,
) -> None:
    tokenizer = KINDS[kind](style)
    messages, known = [], []
    for question, reply in texts:
        messages.append(user(question))
        tail = rendered(tokenizer, messages)
        # What an engine has: every earlier turn token by token as it was sampled.
        known = tail if not known else splice(known, tail, tokenizer).token_ids.tolist()
        odd = data.draw(st.booleans())
        known += pieces(tokenizer, reply) if odd else tokenizer.encode(reply)
        known.append(tokenizer.eos_token_id)
        messages.append(assistant(reply))
    if truncated:
        known.pop()
    prefix = rendered(tokenizer, messages, prompt=False)
    # NeMo-RL's prefix ends behind the newline that this template puts after the turn end.
    template = rendered(tokenizer, [*messages, user(news)])
    ours = splice(known, template, tokenizer)
    assert isinstance(ours, Spliced)
    expected = one_eos(known, prefix, template, tokenizer.eos_token_id)
    assert ours.token_ids.tolist() == expected
    again = splice(known, ours.token_ids, tokenizer)
    assert isinstance(again, Spliced)
    assert not again.changed
    assert again.token_ids.tolist() == ours.token_ids.tolist()


def thinking_case() -> tuple[object, list[int], list[int], list[int]]:
    tokenizer = byte_bpe(THINK)
    first = [user("What is it?")]
    known = rendered(tokenizer, first) + tokenizer.encode(
        "<think>\nlong time first\n</think>\n\nIt is water.<|im_end|>"
    )
    talk = [*first, assistant("It is water.", reasoning_content="long time first")]
    prefix = rendered(tokenizer, talk, prompt=False)
    return tokenizer, known, prefix, rendered(tokenizer, [*talk, user("a"), assistant("b")][:3])


def test_stripped_reasoning_costs_no_user_turn() -> None:
    tokenizer, known, prefix, template = thinking_case()
    ours = splice(known, template, tokenizer)
    assert isinstance(ours, Spliced)
    assert ours.kinds == (DriftKind.THINKING_STRIPPED,)
    text = tokenizer.decode(ours.token_ids.tolist())
    assert text.endswith("<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
    assert "long time first" in text
    # The rule of one EOS deletes the user's turn here.
    lost = one_eos(known, prefix, template, tokenizer.eos_token_id)
    assert "user\na" not in tokenizer.decode(lost)


def test_an_answer_without_ids_stays_as_it_was_rendered() -> None:
    tokenizer = byte_bpe(CHATML)
    talk = [user("one"), assistant("two")]
    known = [*rendered(tokenizer, talk[:1]), *pieces(tokenizer, "two"), tokenizer.eos_token_id]
    longer = [*talk, user("three"), assistant("from elsewhere"), user("five")]
    ours = splice(known, rendered(tokenizer, longer), tokenizer)
    assert isinstance(ours, Spliced)
    assert ours.token_ids[: len(known)].tolist() == known
    assert tokenizer.decode(ours.token_ids.tolist()) == tokenizer.apply_chat_template(
        longer, tokenize=False, add_generation_prompt=True
    )


def test_a_turn_end_that_is_not_eos_is_found() -> None:
    tokenizer = byte_bpe(SPACED)  # EOS is <|endoftext|>, turns end in <|end|>
    known = rendered(tokenizer, [user("one")]) + pieces(tokenizer, " two")
    known += tokenizer.encode("<|end|>")
    template = rendered(tokenizer, [user("one"), assistant(" two"), user("three")])
    refusal = splice(known, template, tokenizer)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusalReason.NO_TURN_END
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    ours = splice(known, template, tokenizer, ends=[end])
    assert isinstance(ours, Spliced)
    assert ours.token_ids[: len(known)].tolist() == known
    assert tokenizer.decode(ours.token_ids[len(known) :].tolist()).startswith("\n### user: three")


def test_an_edited_history_is_refused_not_overwritten() -> None:
    tokenizer = byte_bpe(CHATML)
    known = [*rendered(tokenizer, [user("one")]), *tokenizer.encode("two"), tokenizer.eos_token_id]
    edited = rendered(tokenizer, [user("ONE, no: 1"), assistant("two"), user("three")])
    ours = splice(known, edited, tokenizer)
    assert isinstance(ours, Refusal)
    assert ours.reason is RefusalReason.EDITED_HISTORY
    assert ours.at == 0
    rewritten = rendered(tokenizer, [user("one"), assistant("another answer"), user("three")])
    ours = splice(known, rewritten, tokenizer)
    assert isinstance(ours, Refusal)
    assert ours.reason is RefusalReason.EDITED_HISTORY


def test_an_empty_tail_gives_the_known_tokens() -> None:
    tokenizer = byte_bpe(HEADERS)
    known = rendered(tokenizer, [user("one")]) + pieces(tokenizer, "two")
    template = rendered(tokenizer, [user("one"), assistant("two")], prompt=False)
    ours = splice(known, template, tokenizer)
    assert isinstance(ours, Spliced)
    assert ours.token_ids.tolist() == [*known, tokenizer.eos_token_id]


def test_lost_turns_are_refused() -> None:
    tokenizer = byte_bpe(CHATML)
    talk = [user("one"), assistant("two"), user("three"), assistant("four"), user("five")]
    known = [*rendered(tokenizer, talk[:3]), *tokenizer.encode("four"), tokenizer.eos_token_id]
    compacted = rendered(tokenizer, [talk[2], talk[3], talk[4], talk[3], talk[4]])
    for template in (rendered(tokenizer, talk[-1:]), compacted):
        ours = splice(known, template, tokenizer)
        assert isinstance(ours, Refusal)
        assert ours.reason is RefusalReason.TURN_LOST


def test_a_generation_prompt_that_merged_with_the_content_is_unmerged() -> None:
    tokenizer = byte_bpe(CHATML)
    known = rendered(tokenizer, [user("one")])
    known += [*tokenizer.encode("\n\n"), *tokenizer.encode("two"), tokenizer.eos_token_id]
    template = rendered(tokenizer, [user("one"), assistant("\n\ntwo"), user("three")])
    ours = splice(known, template, tokenizer)
    assert isinstance(ours, Spliced)
    assert ours.token_ids[: len(known)].tolist() == known
    text = "<|im_start|>assistant\n\n\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>"
    assert text in tokenizer.decode(ours.token_ids.tolist())


def test_tool_calls_written_anew_and_dropped_text_are_still_the_same_message() -> None:
    tokenizer = byte_bpe(THINK)
    start = rendered(tokenizer, [user("one")])
    said = 'ok <tool_call>\n{"name":"lookup","arguments":{"key":"\\u00fc"}}\n</tool_call><|im_end|>'
    call = {"id": "c", "type": "function",
            "function": {"name": "lookup", "arguments": {"key": "ü"}}}  # fmt: skip
    result = {"role": "tool", "content": "r"}
    for content, kind in (("ok", DriftKind.TOOL_JSON), ("", DriftKind.TEXT_DROPPED)):
        talk = [user("one"), assistant(content, tool_calls=[call]), result]
        known = start + tokenizer.encode(said)
        ours = splice(known, rendered(tokenizer, talk), tokenizer)
        assert isinstance(ours, Spliced)
        assert ours.kinds == (kind,)
        assert ours.token_ids[: len(known)].tolist() == known


def test_the_provenance_of_a_spliced_prompt_tells_sampled_from_repaired() -> None:
    tokenizer = byte_bpe(CHATML)
    start = rendered(tokenizer, [user("one")])
    ids = [*tokenizer.encode("\n\n"), *pieces(tokenizer, "two"), tokenizer.eos_token_id]
    turn = Turn(PromptSpan(start), (SampledSpan(ids, [-1.0] * len(ids)),))
    done = splice_turn(
        turn, rendered(tokenizer, [user("one"), assistant("\n\ntwo"), user("x")]), tokenizer
    )
    assert not isinstance(done, Refusal)
    span, spliced = done
    assert span.provenance[spliced.at] == Provenance.REPAIRED  # the header's newline, unmerged
    assert set(span.provenance[len(start) : len(start) + len(ids)]) == {Provenance.SAMPLED}
    assert set(span.provenance[len(start) + len(ids) :]) == {Provenance.PROMPT}


def test_an_answer_ended_by_the_next_header_is_spliced() -> None:
    tokenizer = byte_bpe(ROLE_ENDS)
    known = rendered(tokenizer, [user("one")]) + pieces(tokenizer, "two")
    known += tokenizer.encode("<|user|>")
    ours = splice(known, rendered(tokenizer, [user("one"), assistant("two"), user("x")]), tokenizer)
    assert isinstance(ours, Spliced)
    assert tokenizer.decode(ours.token_ids[len(known) :].tolist()) == "\nx<|assistant|>\n"


@settings(max_examples=1500, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    style=st.sampled_from([s for s in STYLES if s.name not in {"plain", "role_ends"}]),
    said=st.text(max_size=24),
    news=st.text(min_size=1, max_size=16),
    ended=st.booleans(),
    data=st.data(),
)
def test_splicing_twice_equals_once_and_keeps_every_known_token(
    kind: str, style: Style, said: str, news: str, ended: bool, data: st.DataObject
) -> None:
    tokenizer = KINDS[kind](style)
    end = tokenizer.encode(turn_end(kind, style), add_special_tokens=False)
    start = rendered(tokenizer, [user("one")])
    ids = data.draw(st.sampled_from([tokenizer.encode(said), pieces(tokenizer, said)]))
    known = np.array([*start, *ids, *(end if ended else [])])
    template = rendered(tokenizer, [user("one"), assistant(said), user(news)])
    ours = splice(known, template, tokenizer, ends=end)
    if isinstance(ours, Refusal):
        assert ours.reason in set(RefusalReason)
        return
    assert ours.token_ids[: len(known)].tolist() == known.tolist()
    again = splice(known, ours.token_ids, tokenizer, ends=end)
    assert isinstance(again, Spliced)
    assert again.token_ids.tolist() == ours.token_ids.tolist()


@functools.cache
def turn_end(kind: str, style: Style) -> str:
    return Bridge(KINDS[kind](style)).template.turn_end


def test_a_tokenizer_without_eos_needs_ends() -> None:
    class Endless(Words):
        eos_token_id = None

    refusal = splice([1, 2], [1, 3, 2], Endless())
    assert isinstance(refusal, Refusal)
    assert refusal.reason is RefusalReason.NO_TURN_END
    with pytest.raises(ValueError, match="integers"):
        splice(["token_id:1"], [1], Words())


@pytest.mark.nemo_rl
def test_our_reading_of_nemo_rls_rule_is_its_own_code() -> None:
    """Seen equal to v0.7.0's function on 50,000 random inputs; run wherever that is importable."""
    worker = pytest.importorskip("nemo_rl.models.generation.vllm.vllm_worker_async")
    rng, outcomes = random.Random(0), set()
    for _ in range(2000):
        model, prefix, template = (
            [rng.randint(0, 4) for _ in range(rng.randint(0, 9))] for _ in range(3)
        )
        results = []
        for rule in (lambda *ids: worker._replace_prefix_tokens(Words(), *ids), one_eos):
            try:
                results.append(rule(model, prefix, template))
            except AssertionError:
                results.append("refused")
        assert results[0] == results[1]
        outcomes.add(results[0] == "refused")
    assert outcomes == {True, False}
