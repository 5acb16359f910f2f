"""Does the next prompt begin with what the engine had? Real vLLM over HTTP, with and without us.

Conversations of several turns with tools, a reasoning parser and a tool parser, at temperature 1.
Without: an ordinary chat client, vLLM renders the history. With: the bridge's IDs go in
(`kv_transfer_params.prompt_token_ids`, token-in chat). Then every trained token's logprob is
computed again in float32 by Hugging Face.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.engine import post, serve
from benchmarks.tiny_model import TOOLS, make, words
from rlbridge.contracts.codecs.engine import turns_from_reply
from rlbridge.contracts.reward import ValidReward
from rlbridge.contracts.rollout import Rollout, Turn
from rlbridge.contracts.tokens import LogprobsMode
from rlbridge.onpolicy.bridge import Bridge, Bridged
from rlbridge.onpolicy.build import build
from rlbridge.onpolicy.drift import diagnose

PARSERS = ("--reasoning-parser", "qwen3", "--tool-call-parser", "hermes",
           "--enable-auto-tool-choice")  # fmt: skip


@dataclass
class Outcome:
    """What became of the turns of one mode."""

    turns: int = 0
    drifted: int = 0
    refused_by_engine: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    rollouts: list[Rollout] = field(default_factory=list)

    @property
    def drift(self) -> float:
        """Share of the turns that drifted."""
        return self.drifted / self.turns if self.turns else 0.0


@dataclass
class Client:
    """A chat client of one server; with a bridge it sends IDs."""

    session: aiohttp.ClientSession
    url: str
    tokenizer: Any
    ends: list[int]
    turns: int
    bridge: Bridge | None
    outcome: Outcome = field(default_factory=Outcome)

    async def converse(self, seed: int) -> None:
        """Hold one conversation and note what became of it."""
        rng = random.Random(seed)
        messages: list[dict[str, Any]] = [{"role": "user", "content": words(rng, 3, 12)}]
        taken: list[Turn] = []
        prompt: list[int] | None = None
        for _ in range(self.turns):
            body: dict[str, Any] = {
                "model": "tiny", "messages": messages, "tools": TOOLS, "max_tokens": 72,
                "temperature": 1.0, "logprobs": True, "return_token_ids": True,
            }  # fmt: skip
            if prompt is not None:
                body["kv_transfer_params"] = {"prompt_token_ids": prompt}
            status, reply = await post(self.session, f"{self.url}/v1/chat/completions", body)
            if status != 200:
                self.outcome.refused_by_engine += 1
                break
            turn = turns_from_reply(reply, request=body, logprobs_mode=LogprobsMode.RAW)[0]
            if taken:
                self._count(taken[-1], turn)
            taken.append(turn)
            news = _next(rng, reply["choices"][0]["message"])
            messages = [*messages, _history(reply["choices"][0]["message"]), *news]
            if self.bridge is not None:
                bridged = self.bridge.next_prompt(turn, news, tools=TOOLS)
                if not isinstance(bridged, Bridged):
                    raise RuntimeError(f"the bridge refused: {bridged}")
                prompt = bridged.prompt.token_ids.tolist()
        if taken:
            rollout = Rollout(f"{seed}", tuple(taken), ValidReward(1.0))
            self.outcome.rollouts.append(rollout)

    def _count(self, before: Turn, after: Turn) -> None:
        self.outcome.turns += 1
        known = before.token_ids
        sampled = np.arange(len(known)) >= len(before.prompt)
        drift = diagnose(
            known, after.prompt.token_ids, self.tokenizer, ends=self.ends, sampled=sampled
        )
        if drift is not None:
            self.outcome.drifted += 1
            self.outcome.kinds[drift.kind.value] += 1


def _history(message: dict[str, Any]) -> dict[str, Any]:
    """The assistant's message as a client sends it back."""
    kept = {name: message[name] for name in ("role", "content", "reasoning", "tool_calls")
            if message.get(name)}  # fmt: skip
    return {"content": "", **kept} if "tool_calls" not in kept else kept


def _next(rng: random.Random, message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    if calls:
        return [
            {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"],
             "content": words(rng, 1, 6)}
            for call in calls
        ]  # fmt: skip
    return [{"role": "user", "content": words(rng, 3, 12)}]


async def collect(
    url: str, tokenizer: Any, *, conversations: int, turns: int, bridge: Bridge | None
) -> Outcome:
    """Hold the conversations, 16 at a time."""
    async with aiohttp.ClientSession() as session:
        ends = [tokenizer.eos_token_id]
        client = Client(session, url, tokenizer, ends, turns, bridge)
        gate = asyncio.Semaphore(16)

        async def one(seed: int) -> None:
            async with gate:
                await client.converse(seed)

        await asyncio.gather(*(one(seed) for seed in range(conversations)))
    return client.outcome


def recompute(rollouts: list[Rollout], model: Path) -> tuple[float, int, int]:
    """Largest difference to Hugging Face's float32 logprobs, trained tokens, sequences."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    largest, tokens, count = 0.0, 0, 0
    for rollout in rollouts:
        for sequence in build(rollout).sequences:
            with torch.no_grad():
                ids = torch.tensor(sequence.token_ids.astype(np.int64))[None]
                scores = torch.log_softmax(policy(input_ids=ids).logits[0, :-1].float(), -1)
            again = scores.gather(1, ids[0, 1:, None])[:, 0].numpy()
            mask = sequence.mask[1:]
            gaps = np.abs(again[mask] - sequence.logprobs[1:][mask])
            largest = max(largest, float(gaps.max(initial=0.0)))
            tokens += int(mask.sum())
            count += 1
    return largest, tokens, count


def measure(conversations: int, turns: int, steps: int, folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer

    started = time.monotonic()
    model = folder / f"tiny-{steps}"
    with serve(model, folder / "vllm.log", *PARSERS) as server:
        make(model, steps=steps)
        trained_s = time.monotonic() - started
        tokenizer = AutoTokenizer.from_pretrained(model)
        bridge = Bridge(tokenizer)
        server.wait()
        ready_s = time.monotonic() - started
        modes = {
            name: asyncio.run(
                collect(server.url, tokenizer, conversations=conversations, turns=turns, bridge=use)
            )
            for name, use in (("without", None), ("with", bridge))
        }
    without, ours = modes["without"], modes["with"]
    largest, tokens, sequences = recompute(ours.rollouts, model)
    return {
        "turns": ours.turns,
        "drift_without": without.drift,
        "drift_with": ours.drift,
        "max_logprob_diff": largest,
        "_turns_without": without.turns,
        "_kinds_without": dict(without.kinds.most_common()),
        "_engine_refused": [without.refused_by_engine, ours.refused_by_engine],
        "_trained_tokens": tokens,
        "_sequences": [sequences, sum(len(build(r).sequences) for r in without.rollouts)],
        "_conversations": len(ours.rollouts),
        "_seconds": [round(trained_s, 1), round(ready_s, 1), round(time.monotonic() - started, 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12 conversations, a shorter training")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--folder", type=Path, help="keep the model here and use it again")
    asked = parser.parse_args()
    conversations, steps = (12, 40) if asked.quick else (200, 240)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (asked.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(conversations, 4, steps, folder)
    if asked.json:
        print(json.dumps({k: v for k, v in figures.items() if not k.startswith("_")}))
        return
    _print(figures)


def _print(figures: dict[str, Any]) -> None:
    sequences = figures["_sequences"]
    train_s, ready_s, total_s = figures["_seconds"]
    print(f"{figures['_conversations']} conversations of 4 turns, T=1, tools and reasoning parsed")
    print(f"turns that drift without the bridge  {figures['drift_without']:8.1%}"
          f"  of {figures['_turns_without']}: {figures['_kinds_without']}")  # fmt: skip
    print(f"turns that drift with it             {figures['drift_with']:8.1%}"
          f"  of {figures['turns']}")  # fmt: skip
    print(f"sequences to train                   {sequences[1]} without, {sequences[0]} with")
    print(f"logprobs against float32, largest    {figures['max_logprob_diff']:.2e}"
          f"  over {figures['_trained_tokens']} trained tokens")  # fmt: skip
    print(f"requests the engine refused          {figures['_engine_refused']} (without, with)")
    print(f"seconds: trained after {train_s}, vLLM ready after {ready_s}, all {total_s}")


if __name__ == "__main__":
    sys.exit(main())
