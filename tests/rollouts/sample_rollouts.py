"""Rollouts to look at: tools, reasoning, a drift, failures, hostile text, three environments."""

import random
from pathlib import Path
from typing import Any

import orjson

from benchmarks.templates import CHATML
from benchmarks.tokenizers import byte_bpe

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CITIES = ("Rome", "Kyoto", "Lagos", "Lima", "Oslo", "Perth")


def tokenizer() -> Any:
    return byte_bpe(CHATML)


def fields(prompt: list[int], sampled: list[int], chance: random.Random) -> dict[str, Any]:
    logprobs = [-round(chance.choice((0.01, 0.05, 0.3, 0.9, 2.2, 5.0)), 3) for _ in sampled]
    return {
        "prompt_token_ids": prompt,
        "generation_token_ids": sampled,
        "generation_log_probs": logprobs,
    }


def message(text: str, **more: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"id": "m", "type": "message", "role": "assistant", "status": "completed",
            "content": [part], **more}  # fmt: skip


def weather(number: int, model: Any, chance: random.Random, *, drifts: bool) -> dict[str, Any]:
    """Two model calls with a tool's answer between them."""
    city = CITIES[number % len(CITIES)]
    ask = f"What is the weather in {city}, and is it a day for the water?"

    def ids(text: str) -> list[int]:
        return list(model.encode(text, add_special_tokens=False))

    end = [model.eos_token_id]
    first = ids(f"user\n{ask}\nassistant\n")
    call = ids(f'I look it up. {{"name": "get_weather", "arguments": {{"city": "{city}"}}}}') + end
    found = f'{{"city": "{city}", "temperature": {12 + number % 20}, "sky": "clear"}}'
    again = ids("user\n" + ask.upper() + "\n") if drifts else first
    second = again + call + ids(f"\ntool\n{found}\nassistant\n")
    answer = f"In {city} it is {12 + number % 20} degrees and clear: a good day to swim."
    arguments = orjson.dumps({"city": city}).decode()
    thought = [{"type": "summary_text", "text": "The tool knows; I should not guess."}]
    output = [
        {"type": "reasoning", "id": "r", "summary": thought},
        {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": arguments,
         **fields(first, call, chance)},
        {"type": "function_call_output", "call_id": "c", "output": found},
        message(answer, **fields(second, ids(answer) + end, chance)),
    ]  # fmt: skip
    return {
        "responses_create_params": {
            "input": [
                {"role": "system", "content": "You answer from what the tools say."},
                {"role": "user", "content": ask},
            ],
            "tools": [{"type": "function", "name": "get_weather", "parameters": {}}],
        },
        "response": {"output": output},
        "agent_ref": {"name": "weather"},
    }


def plain(number: int, environment: str, text: str) -> dict[str, Any]:
    return {
        "responses_create_params": {"input": f"Question {number}: what is {number} + {number}?"},
        "response": {"output": [message(text)]},
        "agent_ref": {"name": environment},
        "expected_answer": str(2 * number),
    }


def write_sample(path: Path, count: int, seed: int = 0) -> Path:
    """A file of `count` rollouts: row 3 drifts, row 4 is hostile, every ninth has failed."""
    chance, model = random.Random(seed), tokenizer()
    rich = [weather(n, model, chance, drifts=n == 3) for n in range(min(count, 12))]
    with path.open("wb") as file:
        for n in range(count):
            if n < 12 and n != 4:
                row = dict(rich[n])
            else:
                right = f"I add them: {n} + {n} = {2 * n}. The answer is \\boxed{{{2 * n}}}."
                row = plain(n, ("arithmetic", "riddles")[n % 2], HOSTILE if n == 4 else right)
            row |= {"_ng_task_index": n // 4, "_ng_rollout_index": n % 4}
            if n % 9 == 8:
                row |= {"_ng_failure_class": ("timeout", "server_error")[n % 2]}
            else:
                row["reward"] = chance.choice((0.0, 0.25, 0.5, 1.0))
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path
