"""Real tokenizers, trained on the spot: byte-level BPE and a SentencePiece-like one."""

import functools
import json
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.templates import STYLES, Style

_WORDS = (
    "the of and to in is it that was for on are with as his they at be this from have or by one "
    "had not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more two like him see time "
    "could no make than first been its who now people my made over did down only way find use may "
    "water long little very after words called just where most know weather temperature answer "
    "question tool call function name arguments city lookup result think user assistant system "
)
WORDS = _WORDS.split()
SAMPLES = (
    "def f(x):\n    return x + 1\n\n\nprint(f(2))\n",
    '{"name": "lookup", "arguments": {"key": "value", "n": 3}}\n',
    "naïve café — über 日本語 🙂 ещё\n",
    "\n\nFirst, second.\n\n- one\n- two\n\n",
    "   indented\t\ttabs   and   spaces\n",
)


def corpus(seed: int = 0, lines: int = 1500) -> list[str]:
    """Lines of English-like words, code, JSON and scripts beyond ASCII."""
    rng = random.Random(seed)
    text = []
    for i in range(lines):
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 14)))
        text.append(line.capitalize() + rng.choice([".", "?", "!\n", ".\n\n", ","]))
        if i % 7 == 0:
            text.append(rng.choice(SAMPLES))
    return text


@functools.cache
def byte_bpe(style: Style, vocab: int = 1200) -> PreTrainedTokenizerFast:
    """GPT-2-like: bytes, no spaces put anywhere."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(style.specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(), trainer)
    return _wrap(core, style)


@functools.cache
def sentencepiece_like(style: Style, vocab: int = 1200) -> PreTrainedTokenizerFast:
    """SentencePiece-like: spaces are U+2581, a text's first word gets one, unknown is bytes."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))  # noqa: S106 # a token of text
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[*style.specials, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=120,
        max_token_length=12,
        show_progress=False,
    )
    core.train_from_iterator(corpus(1, 600), trainer)
    # The bytes had to be told to the trainer as special tokens; in real ones they are plain.
    written = json.loads(core.to_str())
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"][:3] != "<0x"]
    return _wrap(Tokenizer.from_str(json.dumps(written)), style)


def _wrap(core: Tokenizer, style: Style) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=style.specials[0],
        additional_special_tokens=list(style.specials[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )
    fast.chat_template = style.template
    return fast


KINDS = {"byte_bpe": byte_bpe, "sentencepiece_like": sentencepiece_like}
COMBINATIONS = [(kind, style) for kind in KINDS for style in STYLES]
