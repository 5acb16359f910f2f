"""Rollouts as `rlbridge rollouts collect` leaves them, and a policy they could be of."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.templates import THINK
from benchmarks.tokenizers import byte_bpe
from tests.transforms.made_rows import TOOL, answered, called, row, said, thought, write

SYSTEM = {"type": "message", "role": "system", "content": "Be brief."}


def _asked(text: str) -> dict[str, str]:
    return {"type": "message", "role": "user", "content": text}


def with_tools(path: Path) -> Path:
    """Eight rollouts with a system message, reasoning, and two calls in one turn."""
    rows = []
    for task in range(8):
        output = [
            thought("Both cities."),
            called('{"city": "Rome"}', "a"), called('{"city": "Oslo"}', "b"),
            answered(f"{task} degrees", "a"), answered("rain", "b"),
            said(f"Rome {task}, Oslo rain."),
        ]  # fmt: skip
        one = row([SYSTEM, _asked(f"Rome and Oslo, {task}?")], output)
        one["responses_create_params"]["tools"] = [TOOL]
        rows.append(one)
    return write(path, rows)


def single_answers(path: Path, *, system: bool = False) -> Path:
    """A good and a bad rollout of each of eight prompts."""
    head = [SYSTEM] if system else []
    return write(
        path,
        [
            row([*head, _asked(f"What is {task} + 1?")], text, reward)
            for task in range(8)
            for text, reward in ((f"It is {task + 1}.", 1.0), ("I can't tell.", 0.0))
        ],
    )


def transformed(rollouts: Path, output: Path, *arguments: str) -> Path:
    """Run `rlbridge transform`."""
    command = [sys.executable, "-m", "rlbridge", "transform", arguments[0], str(rollouts)]
    done = subprocess.run(
        [*command, "--output", str(output), *arguments[1:]],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def save_policy(folder: Path) -> Path:
    """A tiny Llama with a tokenizer whose template has tools and leaves old reasoning out."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer: Any = byte_bpe(THINK)
    tokenizer.pad_token = "<|endoftext|>"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]
