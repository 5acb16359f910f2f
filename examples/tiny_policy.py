"""Make a tiny policy and its data for the demo: no download, about half a minute on a CPU.

    python examples/tiny_policy.py --output runs/demo

leaves

- `policy/`: a Qwen2 of some 200,000 parameters in Hugging Face format, with a byte-level BPE
  tokenizer and a ChatML template, warmed up by supervised fine-tuning on sloppy examples: it
  answers "What is 7 + 8?" with a hedge or a number near the sum, and with the sum about one time
  in three.
  That is the signal GRPO needs; the rest of the way is the reward's.
- `data/train.jsonl`, `data/validation.jsonl`: Gym rows (`responses_create_params`, the verifier's
  `expected_answer`, `agent_ref`). The answer is never part of the prompt, and no sum of the
  validation rows is in the training rows.

Why these shapes: vLLM's CPU attention takes heads of 32 and up, and a tied embedding would be
left stale by a weight sync, so the embeddings are untied.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

LARGEST = 9
HEDGE = "I am not sure."
SHARE_HEDGED = 0.6
SHARE_RIGHT = 0.9
WARM_UP_STEPS = 800
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Pair = tuple[int, int]
Example = tuple[list[int], list[int]]
"""Token IDs of what comes before, and of an answer with the turn's end."""


def question(pair: Pair) -> str:
    return f"What is {pair[0]} + {pair[1]}?"


def make_tokenizer() -> PreTrainedTokenizerFast:
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    corpus = [f"system user assistant {question(pair)} {sum(pair)} {HEDGE}\n" for pair in pairs]
    return train_tokenizer(corpus, vocab_size=320, template=CHATML)


def train_tokenizer(
    corpus: list[str], *, vocab_size: int, template: str, marks: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the task's own text; every digit and mark is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=template,
        model_max_length=256,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).float()


class Encoder:
    """Prompts and answers as token IDs, each rendered once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._prompts: dict[Pair, list[int]] = {}
        self._answers: dict[str, list[int]] = {}

    def __call__(self, pair: Pair, answer: str) -> Example:
        if pair not in self._prompts:
            self._prompts[pair] = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question(pair)}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        if answer not in self._answers:
            ids = self.tokenizer.encode(answer)
            self._answers[answer] = [*ids, self.tokenizer.eos_token_id]
        return self._prompts[pair], self._answers[answer]


@torch.no_grad()
def sampled_accuracy(model: Qwen2ForCausalLM, encode: Encoder, pairs: list[Pair]) -> float:
    """Share of right answers when sampling at temperature 1: the reward GRPO starts from."""
    right = 0
    by_length: dict[int, list[Example]] = {}
    for pair in pairs:
        prompt, answer = encode(pair, str(sum(pair)))
        by_length.setdefault(len(prompt), []).append((prompt, answer))
    for group in by_length.values():
        ids = torch.tensor([prompt for prompt, _ in group])
        for _ in range(4):
            probs = torch.softmax(model(ids).logits[:, -1], dim=-1)
            ids = torch.cat([ids, torch.multinomial(probs, 1)], dim=1)
        for row, (prompt, answer) in zip(ids.tolist(), group, strict=True):
            right += row[len(prompt) :][: len(answer)] == answer
    return right / len(pairs)


def sloppy_answer(pair: Pair, rng: random.Random) -> str:
    """A hedge in SHARE_HEDGED of the cases; of the numbers, SHARE_RIGHT are the sum."""
    if rng.random() < SHARE_HEDGED:
        return HEDGE
    if rng.random() < SHARE_RIGHT:
        return str(sum(pair))
    return str(max(0, sum(pair) + rng.choice([-2, -1, 1, 2])))


def warm_up(
    model: Qwen2ForCausalLM, encode: Encoder, pairs: list[Pair], steps: int, seed: int
) -> None:
    """Teach it sloppy answers: their form, and roughly their size."""
    rng = random.Random(seed)

    def sloppy_batch() -> list[Example]:
        return [encode(pair, sloppy_answer(pair, rng)) for pair in rng.choices(pairs, k=128)]

    fine_tune(model, sloppy_batch, steps, learning_rate=2e-3)


def fine_tune(
    model: Qwen2ForCausalLM,
    next_batch: Callable[[], list[Example]],
    steps: int,
    *,
    learning_rate: float,
) -> None:
    """Supervised fine-tuning on the answers of each batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(1, steps + 1):
        loss = answer_loss(model, next_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"warm-up step {step}/{steps}, loss {loss.item():.3f}", file=sys.stderr)


def answer_loss(model: Qwen2ForCausalLM, batch: list[Example]) -> torch.Tensor:
    """Cross-entropy of the answers' tokens, padding and prompts left out."""
    width = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.full((len(batch), width), model.config.pad_token_id)
    labels = torch.full((len(batch), width), -100)
    for i, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    loss: torch.Tensor = model(ids, labels=labels).loss
    return loss


def row(pair: Pair) -> dict[str, Any]:
    return {
        "responses_create_params": {"input": [{"role": "user", "content": question(pair)}]},
        "expected_answer": str(sum(pair)),
        "agent_ref": {"type": "responses_api_agents", "name": "arithmetic"},
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up-steps", type=int, default=WARM_UP_STEPS)
    arguments = parser.parse_args()

    transformers_logging.disable_progress_bar()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    random.Random(0).shuffle(pairs)
    validation, train = pairs[:20], pairs[20:]

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)

    encode = Encoder(tokenizer)
    warm_up(model, encode, train, arguments.warm_up_steps, arguments.seed)
    for name, sums in (("training", train), ("validation", validation)):
        print(f"{name} sums: {sampled_accuracy(model, encode, sums):.0%} right when sampled")
    model.save_pretrained(arguments.output / "policy")
    tokenizer.save_pretrained(arguments.output / "policy")
    write_rows(arguments.output / "data" / "train.jsonl", [row(pair) for pair in train])
    write_rows(arguments.output / "data" / "validation.jsonl", [row(pair) for pair in validation])
    print(f"wrote {arguments.output}/policy and {arguments.output}/data")


if __name__ == "__main__":
    main()
