"""The example in docs/tokens.md runs, and a tokenizer's hashes tell tokenizers apart."""

import re
from pathlib import Path

import numpy as np

from benchmarks.templates import CHATML, THINK
from benchmarks.tokenizers import byte_bpe, sentencepiece_like
from rlbridge.contracts.codecs.engine import reply_from_turn
from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import PromptSpan, SampledSpan
from rlbridge.onpolicy.tokenizer import encoding_of

DOCS = Path(__file__).parents[2] / "docs" / "tokens.md"


def test_the_documented_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    tokenizer = byte_bpe(CHATML)
    prompt = tokenizer.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n")
    turn = Turn(PromptSpan(prompt), (SampledSpan([300, tokenizer.eos_token_id], [-1.0, -0.5]),))
    names = {"tokenizer": tokenizer, "reply": reply_from_turn(turn)}
    exec(code, names)  # noqa: S102 # our own documentation
    assert names["next_ids"][: len(turn.token_ids)] == turn.token_ids.tolist()
    assert np.flatnonzero(names["sequence"].mask).tolist() == [len(prompt), len(prompt) + 1]


def test_hashes_tell_tokenizers_and_templates_apart() -> None:
    chatml, think = encoding_of(byte_bpe(CHATML)), encoding_of(byte_bpe(THINK))
    assert chatml == encoding_of(byte_bpe(CHATML))
    assert chatml.template != think.template
    assert chatml.tokenizer != encoding_of(sentencepiece_like(CHATML)).tokenizer
    assert chatml.template == encoding_of(sentencepiece_like(CHATML)).template
