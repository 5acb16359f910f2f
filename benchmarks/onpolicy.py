"""What keeping tokens exact costs: the bridge against rendering twice a turn and against a floor.

The floor encodes the text of the new messages, which nobody can skip, and appends it with
`numpy.concatenate`: no template, no proof, no provenance, no checks. `concatenate alone` is given
the IDs as well; it is printed for the record.
"""

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.templates import CHATML
from benchmarks.tokenizers import WORDS, byte_bpe
from rlbridge.contracts.reward import ValidReward
from rlbridge.contracts.rollout import Rollout, Turn
from rlbridge.contracts.tokens import PromptSpan, SampledSpan
from rlbridge.onpolicy.bridge import Bridge, Bridged
from rlbridge.onpolicy.build import build

TURNS = (32, 64, 128, 256)
SAMPLED_TOKENS = 160
NEW_WORDS = 385  # about 400 tokens: 560 a turn with what is sampled


class Conversation:
    """The same dialogue for every contestant: new messages, and what was sampled before them."""

    def __init__(self, turns: int) -> None:
        rng = random.Random(0)
        self.tokenizer = byte_bpe(CHATML)
        self.news = [" ".join(rng.choice(WORDS) for _ in range(NEW_WORDS)) for _ in range(turns)]
        texts = [" ".join(rng.choice(WORDS) for _ in range(SAMPLED_TOKENS)) for _ in range(turns)]
        self.sampled = [
            np.array([*self.encode(text)[: SAMPLED_TOKENS - 1], self.tokenizer.eos_token_id],
                     dtype=np.int32)
            for text in texts
        ]  # fmt: skip
        self.logprobs = [np.full(len(ids), -1.0, dtype=np.float32) for ids in self.sampled]
        self.first = np.array(
            self.encode(self.render([{"role": "user", "content": self.news[0]}])), dtype=np.int32
        )

    def encode(self, text: str) -> list[int]:
        """IDs of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def render(self, messages: list[dict[str, str]], prompt: bool = True) -> str:
        """A conversation's text."""
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        return text

    def turn(self, number: int, prompt: PromptSpan) -> Turn:
        """The turn that follows a prompt."""
        return Turn(prompt, (SampledSpan(self.sampled[number], self.logprobs[number]),))


def by_bridge(talk: Conversation, bridge: Bridge) -> tuple[np.ndarray[Any, Any], list[Turn]]:
    """Ours."""
    prompt, turns = PromptSpan(talk.first), []
    for number, text in enumerate(talk.news[1:]):
        turn = talk.turn(number, prompt)
        turns.append(turn)
        bridged = bridge.next_prompt(turn, [{"role": "user", "content": text}])
        if not isinstance(bridged, Bridged):
            raise TypeError(bridged)
        prompt = bridged.prompt
    turns.append(talk.turn(len(talk.news) - 1, prompt))
    return prompt.token_ids, turns


def by_concatenation(talk: Conversation, tails: list[np.ndarray[Any, Any]] | None) -> Any:
    """The floor; with `tails`, even the new text is encoded beforehand."""
    ids = talk.first
    for number, text in enumerate(talk.news[1:]):
        if tails is None:
            written = f"\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            tail = np.array(talk.encode(written), dtype=np.int32)
        else:
            tail = tails[number]
        ids = np.concatenate([ids, talk.sampled[number], tail])
    return ids


def by_rendering_twice(talk: Conversation) -> Any:
    """Today's way: the whole prompt and the prefix through the last answer, every turn."""
    messages = [{"role": "user", "content": talk.news[0]}]
    ids: list[int] = []
    for number, text in enumerate(talk.news[1:]):
        answer = talk.tokenizer.decode(talk.sampled[number][:-1].tolist())
        messages.append({"role": "assistant", "content": answer})
        talk.encode(talk.render(messages, prompt=False))
        messages.append({"role": "user", "content": text})
        ids = talk.encode(talk.render(messages))
    return ids


def branched(talk: Conversation, turns: list[Turn], ways: int = 8) -> Rollout:
    """A rollout whose second half was tried in several ways, each with other samples."""
    half = len(turns) // 2
    calls = list(turns[:half])
    bridge = Bridge(talk.tokenizer)
    for way in range(ways):
        prompt = turns[half].prompt
        for number in range(half, half + half // 2):
            other = talk.sampled[number].copy()
            other[0] = 300 + way
            turn = Turn(prompt, (SampledSpan(other, talk.logprobs[number]),))
            calls.append(turn)
            bridged = bridge.next_prompt(turn, [{"role": "user", "content": talk.news[number]}])
            if not isinstance(bridged, Bridged):
                raise TypeError(bridged)
            prompt = bridged.prompt
    return Rollout("branched", tuple(calls), ValidReward(1.0))


def best(work: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of the fastest round: other load on the machine only ever adds."""
    seconds = []
    for _ in range(rounds):
        gc.collect()
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def measure(quick: bool) -> dict[str, Any]:
    """All figures."""
    rounds = 3 if quick else 7
    rows: dict[int, dict[str, float]] = {}
    turns: list[Turn] = []
    for count in TURNS:
        talk = Conversation(count)
        bridge = Bridge(talk.tokenizer)
        ids, turns = by_bridge(talk, bridge)
        floor = by_concatenation(talk, None)
        if not np.array_equal(ids, floor):
            raise ValueError("the bridge and the floor disagree")
        tails = [
            np.array(talk.encode(f"\n<|im_start|>user\n{t}<|im_end|>\n<|im_start|>assistant\n"),
                     dtype=np.int32)
            for t in talk.news[1:]
        ]  # fmt: skip
        rows[count] = {
            "tokens": len(ids),
            "ours_s": best(lambda t=talk, b=bridge: by_bridge(t, b), rounds),
            "floor_s": best(lambda t=talk: by_concatenation(t, None), rounds),
            "concatenate_s": best(lambda t=talk, x=tails: by_concatenation(t, x), rounds),
        }
        if count <= (64 if quick else 128):
            rows[count]["twice_s"] = best(lambda t=talk: by_rendering_twice(t), 1)
    talk = Conversation(128)
    _, turns = by_bridge(talk, Bridge(talk.tokenizer))
    rollout = Rollout("linear", tuple(turns), ValidReward(1.0))
    fork = branched(talk, turns)
    return {
        "ratio_to_floor": {str(n): row["ours_s"] / row["floor_s"] for n, row in rows.items()},
        "growth_128_to_256": rows[256]["ours_s"] / rows[128]["ours_s"],
        "build_128_calls_cpu_s": best(lambda: build(rollout), rounds),
        "_rows": rows,
        "_build": {
            "linear": _built(rollout, best(lambda: build(rollout), rounds)),
            "8 branches": _built(fork, best(lambda: build(fork), rounds)),
        },
    }


def _built(rollout: Rollout, seconds: float) -> dict[str, Any]:
    made = build(rollout)
    return {
        "calls": len(rollout.turns),
        "longest": max(len(sequence) for sequence in made.sequences),
        "sequences": len(made.sequences),
        "trained": made.trained_tokens,
        "sampled": rollout.sampled_tokens,
        "cpu_s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    figures = measure(asked.quick)
    if asked.json:
        print(json.dumps({k: v for k, v in figures.items() if not k.startswith("_")}))
        return
    print("turns  tokens  ours s  floor s  ratio  concatenate alone s  rendering twice s")
    for count, row in figures["_rows"].items():
        print(f"{count:5}  {row['tokens']:6}  {row['ours_s']:6.3f}  {row['floor_s']:7.3f}"
              f"  {row['ours_s'] / row['floor_s']:5.2f}  {row['concatenate_s']:19.4f}"
              f"  {row.get('twice_s', float('nan')):17.2f}")  # fmt: skip
    print(f"256 turns take {figures['growth_128_to_256']:.2f} times as long as 128")
    for name, row in figures["_build"].items():
        print(f"build, {name}: {row['calls']} calls, longest {row['longest']} tokens -> "
              f"{row['sequences']} sequences, {row['trained']} of {row['sampled']} sampled tokens "
              f"trained, {row['cpu_s'] * 1e3:.1f} ms CPU")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
