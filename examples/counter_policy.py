"""Make a tiny policy that calls tools, and rows for two of NeMo Gym's example environments.

    python examples/counter_policy.py --output runs/counter

leaves

- `policy/`: a Qwen2 of some 200,000 parameters whose template writes tool calls as Hermes does,
  warmed up by supervised fine-tuning on sloppy dialogues: asked to "Add 3 then 5.", it calls
  `increment_counter` twice, with a wrong number now and then, and says "Done."; asked for the
  weather, it calls `get_weather`.
- `data/counter.jsonl`, `data/weather.jsonl`: Gym rows for `example_session_state_mgmt` (the
  counter lives in the session: the reward is 1 only if both calls reached the same session, with
  the right numbers) and for `example_single_tool_call` (every answer is rewarded).
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from tiny_policy import END, START, Example, fine_tune, make_model, train_tokenizer, write_rows
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

SHARE_RIGHT = 0.6
WARM_UP_STEPS = 700
LARGEST = 9
CITIES = ("Oslo", "Lima", "Rome", "Cairo")
CALL, CALL_END = "<tool_call>", "</tool_call>"
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n"
    "{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments if call.function.arguments is string"
    " else call.function.arguments | tojson }}}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTER_TOOLS = [
    {
        "type": "function",
        "name": "increment_counter",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"count": {"type": "integer", "description": ""}},
            "required": ["count"],
            "additionalProperties": False,
        },
        "strict": True,
    }
]
WEATHER_TOOLS = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": ""}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    }
]
Dialogue = list[str]
"""Prompt, answer, observation, answer, ... as text; answers without the turn's end."""


def tool_call(name: str, arguments: dict[str, Any]) -> str:
    return f'{CALL}{{"name": "{name}", "arguments": {json.dumps(arguments)}}}{CALL_END}'


def prompt(tool: str, question: str) -> str:
    return f"{START}system\n{tool} {END}\n{START}user\n{question}{END}\n{START}assistant\n"


def observation(text: str) -> str:
    return f"\n{START}tool\n{text}{END}\n{START}assistant\n"


def counter_dialogue(
    first: int, second: int, rng: random.Random, largest: int = LARGEST
) -> Dialogue:
    """Two calls and a word; each number is right in SHARE_RIGHT of the cases."""

    def sloppy(number: int) -> int:
        return number if rng.random() < SHARE_RIGHT else rng.randint(1, largest)

    calls = [tool_call("increment_counter", {"count": sloppy(n)}) for n in (first, second)]
    done = observation('{"success":true}')
    question = prompt("increment_counter", f"Add {first} then {second}.")
    return [question, calls[0], done, calls[1], done, "Done."]


def weather_dialogue(city: str) -> Dialogue:
    words = f"The weather in {city} is cold."
    seen = observation(
        json.dumps({"city": city, "weather_description": words}, separators=(",", ":"))
    )
    question = prompt("get_weather", f"Weather in {city}?")
    return [question, tool_call("get_weather", {"city": city}), seen, "Cold."]


def make_tokenizer() -> PreTrainedTokenizerFast:
    rng = random.Random(0)
    corpus = ["".join(counter_dialogue(a, b, rng)) for a in range(1, 10) for b in range(1, 10)]
    corpus += ["".join(weather_dialogue(city)) for city in CITIES] * 10
    return train_tokenizer(corpus, vocab_size=512, template=TEMPLATE, marks=(CALL, CALL_END))


class Encoder:
    """Dialogues as token IDs, part by part, as a rollout makes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    def __call__(self, dialogue: Dialogue) -> list[Example]:
        """Each answer of the dialogue behind all that comes before it."""
        pairs, context = [], self.ids(dialogue[0])
        for answer, seen in zip(dialogue[1::2], [*dialogue[2::2], ""], strict=True):
            said = [*self.ids(answer), self.tokenizer.eos_token_id]
            pairs.append((context, said))
            context = [*context, *said, *self.ids(seen)]
        return pairs


def warm_up(model: Qwen2ForCausalLM, encode: Encoder, steps: int, seed: int, largest: int) -> None:
    """Teach it sloppy dialogues, and what the weather is like."""
    rng = random.Random(seed)

    def sloppy_batch() -> list[Example]:
        batch = []
        for _ in range(32):
            first, second = rng.randint(1, largest), rng.randint(1, largest)
            dialogue = counter_dialogue(first, second, rng, largest)
            if rng.random() < 0.1:
                dialogue = weather_dialogue(rng.choice(CITIES))
            batch += encode(dialogue)
        return batch

    fine_tune(model, sloppy_batch, steps, learning_rate=3e-3)


@torch.no_grad()
def share_right(model: Qwen2ForCausalLM, encode: Encoder, largest: int) -> float:
    """Probability that a first call has the right number, over all pairs of numbers."""
    right = []
    for first in range(1, largest + 1):
        for second in range(1, largest + 1):
            dialogue = counter_dialogue(first, second, random.Random(0))
            dialogue[1] = tool_call("increment_counter", {"count": first})
            context, said = encode(dialogue)[0]
            ids = torch.tensor([context + said])
            logprobs = torch.log_softmax(model(ids).logits[0, len(context) - 1 : -1], dim=-1)
            right.append(logprobs.gather(1, torch.tensor(said)[:, None]).sum().exp().item())
    return sum(right) / len(right)


def row(question: str, tools: list[dict[str, Any]], agent: str, **fields: Any) -> dict[str, Any]:
    return {
        "responses_create_params": {
            "input": [{"role": "user", "content": question}],
            "tools": tools,
            "parallel_tool_calls": False,
        },
        **fields,
        "agent_ref": {"type": "responses_api_agents", "name": agent},
    }


def counter_rows(largest: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    rows = []
    for first in range(1, largest + 1):
        for second in range(1, largest + 1):
            start = rng.randint(0, 9)
            fields = {"initial_count": start, "expected_count": start + first + second}
            question = f"Add {first} then {second}."
            rows.append(row(question, COUNTER_TOOLS, "example_session_state_mgmt", **fields))
    rng.shuffle(rows)
    return rows


def weather_rows() -> list[dict[str, Any]]:
    return [
        row(f"Weather in {city}?", WEATHER_TOOLS, "example_single_tool_call") for city in CITIES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/counter"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up-steps", type=int, default=WARM_UP_STEPS)
    parser.add_argument("--largest", type=int, default=LARGEST, help="largest number to add")
    arguments = parser.parse_args()

    transformers_logging.disable_progress_bar()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    encode = Encoder(tokenizer)
    warm_up(model, encode, arguments.warm_up_steps, arguments.seed, arguments.largest)
    right = share_right(model, encode, arguments.largest)
    print(f"{right:.0%} of the first calls have the right number")
    model.save_pretrained(arguments.output / "policy")
    tokenizer.save_pretrained(arguments.output / "policy")
    write_rows(arguments.output / "data" / "counter.jsonl", counter_rows(arguments.largest))
    write_rows(arguments.output / "data" / "weather.jsonl", weather_rows())
    print(f"wrote {arguments.output}/policy and {arguments.output}/data")


if __name__ == "__main__":
    main()
