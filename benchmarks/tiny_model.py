"""A tiny policy that thinks, calls tools and answers: untied Qwen2, head size 32, byte BPE.

Trained for seconds on text of our own, so that at temperature 1 it samples the shapes that drift
comes from: tags, JSON, half characters, odd spaces. It knows nothing.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.templates import THINK
from benchmarks.tokenizers import SAMPLES, WORDS

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Get the {name}.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]
CITIES = ("Zürich", "Paris", "東京", "São Paulo", "New York", "Łódź")
CONTEXT = 2048


def words(rng: random.Random, low: int, high: int) -> str:
    """A few words, now and then with a line of another script or of code."""
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))
    if rng.random() < 0.25:
        text += rng.choice(["\n\n", " ", "\n"]) + rng.choice(SAMPLES)
    return text


def answer(rng: random.Random) -> dict[str, Any]:
    """An assistant's message: perhaps reasoning, then text, a tool call or both."""
    message: dict[str, Any] = {"role": "assistant", "content": words(rng, 2, 12)}
    if rng.random() < 0.6:
        message["reasoning_content"] = words(rng, 2, 10)
    if rng.random() < 0.4:
        arguments = {"city": rng.choice(CITIES), "n": rng.randint(0, 9)}
        call = {"name": rng.choice(("weather", "time")), "arguments": arguments}
        message["tool_calls"] = [{"type": "function", "id": "c", "function": call}]
        message["content"] = "" if rng.random() < 0.7 else message["content"]
    return message


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Two or three turns, tool results where a tool was called."""
    messages: list[dict[str, Any]] = []
    for _ in range(rng.randint(2, 3)):
        called = messages and messages[-1].get("tool_calls")
        role = "tool" if called else "user"
        messages.append({"role": role, "content": words(rng, 3, 12)})
        messages.append(answer(rng))
    return messages


def make(
    path: Path,
    *,
    steps: int = 300,
    seed: int = 0,
    lessons: Sequence[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = (),
) -> Path:
    """Train the tokenizer and the model into `path`, unless they are there already.

    Args:
        path: folder to write to.
        steps: of training.
        seed: of all that is drawn.
        lessons: conversations and their tools that it learns by heart besides, if the steps
            suffice: sampled greedily it goes on as they do.
    """
    if (path / "tokenizer_config.json").exists():
        return path
    rng = random.Random(seed)
    talks = [conversation(rng) for _ in range(800)]
    # Its tools' schemas are most of a lesson: as text to be tokenized they get long tokens.
    schemas = [json.dumps(tool) for _, tools in lessons for tool in tools] * 20
    tokenizer = _tokenizer(talks, schemas)
    text = [
        tokenizer.apply_chat_template(
            talk, tools=TOOLS, tokenize=False, add_generation_prompt=False
        )
        for talk in talks
    ]
    learnt = [
        tokenizer.apply_chat_template(
            talk, tools=tools or None, tokenize=False, add_generation_prompt=False
        )
        for talk, tools in lessons
    ]
    _train(tokenizer, text, learnt, path, steps, seed)
    tokenizer.save_pretrained(path)
    return path


def _tokenizer(talks: list[list[dict[str, Any]]], more: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    lines = [str(message.get("content")) for talk in talks for message in talk]
    lines += [json.dumps(m["tool_calls"][0]["function"]) for t in talks for m in t
              if m.get("tool_calls")] + more  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=list(THINK.specials[:3]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    # Tags are one token each but not special: parsers read them as text.
    core.add_tokens([AddedToken(tag, special=False) for tag in THINK.specials[3:]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=THINK.specials[0],
        pad_token=THINK.specials[2],
        additional_special_tokens=[THINK.specials[1]],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    fast.chat_template = THINK.template
    return fast


def _train(
    tokenizer: Any, text: list[str], lessons: list[str], path: Path, steps: int, seed: int
) -> None:
    import torch

    torch.manual_seed(seed)
    # On shared cores two threads that wait for each other take forty times as long as one.
    torch.set_num_threads(1)
    model = _model(tokenizer)
    ids = [i for line in text for i in tokenizer.encode(line, add_special_tokens=False)]
    stream = torch.tensor(ids)
    learnt = [_lesson(tokenizer, lesson) for lesson in lessons]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    length, batch = 160, 12
    for step in range(steps):
        if learnt:  # what is known by heart wants small steps at the end
            optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, 2 * (1 - step / steps))
        starts = torch.randint(0, len(stream) - length - 1, (batch,))
        block = torch.stack([stream[s : s + length] for s in starts.tolist()])
        loss = model(input_ids=block, labels=block).loss
        optimizer.zero_grad()
        loss.backward()
        for lesson, labels in learnt:
            model(input_ids=lesson, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(path)


def _model(tokenizer: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,  # vLLM's weight reload leaves a tied lm_head behind
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config).float()


def _lesson(tokenizer: Any, lesson: str) -> tuple[Any, Any]:
    """Token IDs and labels of a conversation, from its first answer on."""
    import torch

    asked = lesson.index("assistant\n")  # what comes before is not asked of it
    start = len(tokenizer.encode(lesson[:asked], add_special_tokens=False))
    ids = torch.tensor([tokenizer.encode(lesson, add_special_tokens=False)])
    labels = ids.clone()
    labels[:, :start] = -100
    return ids, labels
