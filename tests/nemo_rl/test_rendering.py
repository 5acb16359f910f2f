"""What of a conversation is trained: every template's own rendering, sampled turns marked."""

from typing import Any

import pytest

from benchmarks.templates import CHATML, HEADERS, STYLES, THINK, Style
from benchmarks.tokenizers import byte_bpe
from rlbridge.errors import ConfigError
from rlbridge_nemo_rl.rendering import Renderer

ASKED = {"role": "user", "content": "Rome and Oslo?"}
SAID = {"role": "assistant", "content": "Sun and rain."}
AGAIN = {"role": "user", "content": "And Bonn?"}
CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": city, "type": "function",
         "function": {"name": "weather", "arguments": {"city": city}}}
        for city in ("Rome", "Oslo")
    ],
}  # fmt: skip
ANSWERED = [
    {"role": "tool", "tool_call_id": "Rome", "content": "sun"},
    {"role": "tool", "tool_call_id": "Oslo", "content": "rain"},
]
# Their turns end in the next one's mark; only the last one's end is known.
OPEN_TURNS = tuple(style for style in STYLES if style.name in ("plain", "role_ends"))
THOUGHT = SAID | {"reasoning_content": "easy"}


def of(style: Style, messages: list[dict[str, Any]]) -> tuple[Any, str, str, list[str]]:
    """Tokenizer, the template's text, ours, and what of ours is marked as sampled."""
    tokenizer = byte_bpe(style)
    made = Renderer(tokenizer).render(messages, [])
    ids = [token for piece in made.pieces for token in piece.token_ids]
    sampled = [tokenizer.decode(piece.token_ids) for piece in made.pieces if piece.sampled]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer, whole, tokenizer.decode(ids), sampled


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_what_is_fed_is_what_the_template_renders_through_the_last_turn_end(style: Style) -> None:
    tokenizer, whole, fed, sampled = of(style, [ASKED, SAID, AGAIN, SAID])
    behind = whole.removeprefix(fed)
    # Without a turn end of the template's, the EOS ends what is learned.
    assert not behind.strip() if whole.startswith(fed) else fed == whole + tokenizer.eos_token
    assert [text.count("Sun and rain.") for text in sampled] == [1, 1]
    assert "assistant" not in sampled[0]
    assert sampled[0] == sampled[1] or style in OPEN_TURNS


def test_results_of_parallel_calls_stay_in_the_one_turn_that_the_template_makes_of_them() -> None:
    _, whole, fed, sampled = of(THINK, [ASKED, CALLS, *ANSWERED, SAID])
    assert fed == whole.removesuffix("\n")
    assert fed.count("<tool_response>") == 2
    assert sampled[1] == "Sun and rain.<|im_end|>"


def test_a_turn_whose_reasoning_the_history_leaves_out_is_context_only() -> None:
    made = Renderer(byte_bpe(THINK)).render([ASKED, THOUGHT, AGAIN, THOUGHT], [])
    assert made.changed_turns == 1
    assert [piece.text for piece in made.pieces if piece.sampled] == [
        "<think>\neasy\n</think>\n\nSun and rain.<|im_end|>"
    ]
    assert "Sun and rain." in made.pieces[0].text
    assert "easy" not in made.pieces[0].text


def test_a_last_turn_that_the_template_renders_otherwise_is_refused() -> None:
    opens = CHATML.template.replace("'<|im_start|>assistant\\n' }}{% endif", "'<think>' }}{% endif")
    assert opens != CHATML.template
    tokenizer = byte_bpe(Style("opens", opens, CHATML.specials))
    with pytest.raises(ConfigError, match="otherwise than the policy would go on"):
        Renderer(tokenizer).render([ASKED, SAID], [])


@pytest.mark.nemo_rl
@pytest.mark.parametrize("style", [CHATML, HEADERS, THINK], ids=lambda style: style.name)
def test_nemo_rls_own_processor_gives_the_same_tokens_where_it_renders_right(style: Style) -> None:
    ours = Renderer(byte_bpe(style)).render([ASKED, SAID, AGAIN, SAID], [])
    pieces = theirs(style, [ASKED, SAID, AGAIN, SAID])
    flat = [token for piece in ours.pieces for token in piece.token_ids]
    assert [token for ids in pieces for token in ids][: len(flat)] == flat


@pytest.mark.nemo_rl
@pytest.mark.parametrize(
    "messages",
    [[ASKED, CALLS, *ANSWERED, SAID], [ASKED, THOUGHT, AGAIN, THOUGHT]],
    ids=["parallel calls", "reasoning"],
)
def test_nemo_rls_own_processor_feeds_text_that_the_template_never_renders(
    messages: list[dict[str, Any]],
) -> None:
    """Why there is a renderer of ours; once this fails, theirs may do."""
    tokenizer = byte_bpe(THINK)
    text = tokenizer.decode([token for ids in theirs(THINK, messages) for token in ids])
    assert text.strip() != tokenizer.apply_chat_template(messages, tokenize=False).strip()


def theirs(style: Style, messages: list[dict[str, Any]]) -> list[list[int]]:
    from nemo_rl.data.interfaces import TaskDataSpec
    from nemo_rl.data.processors import sft_processor

    row = {"messages": messages, "task_name": "any"}
    made = sft_processor(
        row, TaskDataSpec(task_name="any"), byte_bpe(style), 4096, 0,
        add_bos=False, add_eos=False, add_generation_prompt=True,
    )  # fmt: skip
    return [message["token_ids"].tolist() for message in made["message_log"]]
