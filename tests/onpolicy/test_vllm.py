"""On a real vLLM over HTTP: with the bridge no turn drifts, and every logprob is the trainer's."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

from benchmarks.drift import PARSERS, collect, recompute
from benchmarks.engine import serve
from benchmarks.tiny_model import make
from rlbridge.onpolicy.bridge import Bridge

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vllm is not installed (extra: cpu)"
    ),
    # Loading torch and transformers warns of things of their own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_with_the_bridge_no_turn_of_a_real_vllm_drifts(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tmp_path / "tiny"
    with serve(model, tmp_path / "vllm.log", *PARSERS) as server:
        make(model, steps=40)
        tokenizer = AutoTokenizer.from_pretrained(model)
        server.wait()
        without, ours = (
            asyncio.run(collect(server.url, tokenizer, conversations=6, turns=4, bridge=bridge))
            for bridge in (None, Bridge(tokenizer))
        )
    assert without.turns == ours.turns == 18
    assert without.drifted > 0
    assert ours.drifted == 0
    assert sum(len(rollout.turns) for rollout in ours.rollouts) == 24
    largest, tokens, sequences = recompute(ours.rollouts, model)
    assert sequences == 6
    assert tokens == sum(rollout.sampled_tokens for rollout in ours.rollouts)
    assert largest < 1e-4
