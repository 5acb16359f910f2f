"""NeMo-RL's Gym path with our actor: a failure costs one rollout, not the batch."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rlbridge.contracts import wire

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("registered")]

PROMPT = [5, 6, 7]


def call(prompt: list[int], sampled: list[int]) -> dict[str, Any]:
    return {
        "type": "message",
        "content": [{"type": "output_text", "text": "x"}],
        wire.PROMPT_TOKEN_IDS: prompt,
        wire.GENERATION_TOKEN_IDS: sampled,
        wire.GENERATION_LOG_PROBS: [-0.5] * len(sampled),
    }


def result(items: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    params = {"input": [{"role": "user", "content": "hi"}]}
    return {
        "responses_create_params": params,
        "response": {"output": items},
        "reward": 1.0,
    } | fields


ANSWERS: dict[str, Any] = {
    "good": result([call(PROMPT, [8, 9]), call([*PROMPT, 8, 9, 10], [11])]),
    "bad": result([call(PROMPT, [8])], reward=0.0),
    "drifted": result([call(PROMPT, [8, 9, 9]), call([*PROMPT, 8, 10], [11])]),
    "masked": result([call(PROMPT, [8])], mask_sample=True),
    "reported": result([call(PROMPT, [8])], _ng_failure_class="judge_failed"),
    "no_reward": result([call(PROMPT, [8])], reward=None),
    "silent": result([{"type": "reasoning", "summary": []}]),
    "half": result([{"type": "message", wire.PROMPT_TOKEN_IDS: [1]}]),
    "no_dict": "Internal Server Error",
}


class StandInCollector:
    """What the actor has of Gym: an iterator over rollouts in order of completion."""

    def run_examples(
        self, examples: list[dict[str, Any]], head_server_config: Any
    ) -> Iterator[Any]:
        async def one(row: dict[str, Any]) -> Any:
            if row["answer"] == "raises":
                raise RuntimeError("500 from /run")
            return row, json.loads(json.dumps(ANSWERS[row["answer"]]))

        return (one(row) for row in reversed(examples))


def rollout(tokenizer: Any, answers: list[str]) -> Any:
    import ray
    from nemo_rl.algorithms import grpo
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    from rlbridge_nemo_rl import versions
    from rlbridge_nemo_rl.gym_agents import _Gym
    from tests.nemo_rl.policies import scripted

    @ray.remote
    class Actor(_Gym):
        def __init__(self) -> None:
            if hasattr(self, "_spinup"):
                super().__init__({})
            else:  # v0.6 starts Gym as it is made
                self.cfg, self._ledger, self._folder, self._step = {}, None, None, 1
            self.rch, self.head_server_config = StandInCollector(), None

    rows = [
        {
            "responses_create_params": {"input": [{"role": "user", "content": "hi"}]},
            "agent_ref": {"name": "agent"},
            "answer": answer,
        }
        for answer in answers
    ]
    batch = BatchedDataDict(extra_env_info=rows, loss_multiplier=torch.ones(len(rows)))
    generation = {
        "temperature": 1.0, "top_p": 1.0, "top_k": None, "max_new_tokens": 64,
        "stop_strings": None, "stop_token_ids": None,
    }  # fmt: skip
    actor = Actor.remote()
    roll_out = getattr(grpo, versions.gym_rollout())
    options = versions.known(roll_out, {"log_full_result_tables": False})
    if hasattr(actor, "set_tokenizer"):
        ray.get(actor.set_tokenizer.remote(tokenizer))
    return roll_out(
        scripted(tokenizer, lambda *_: "x"), batch, tokenizer, {"nemo_gym": actor}, generation,
        **options,
    )  # fmt: skip


def test_a_failure_costs_one_rollout_and_not_the_batch(tokenizer: Any) -> None:
    failures = ["raises", "masked", "reported", "no_reward", "silent", "half", "no_dict"]
    out = rollout(tokenizer, ["good", *failures, "bad"])
    batch = out.final_batch
    assert batch["reward_valid"].tolist() == [True, *[False] * 7, True]
    assert batch["loss_multiplier"].tolist() == [1.0, *[0.0] * 7, 1.0]
    assert batch["total_reward"].tolist() == [1.0, *[0.5] * 7, 0.0]  # fillers behind the mask
    assert out.input_ids.tolist() == [PROMPT] * 9  # one group
    metrics = out.rollout_metrics
    assert (metrics["gym/valid"], metrics["gym/invalid"]) == (3, 6)
    assert metrics["gym/masked_by_environment"] == 1
    assert metrics["gym/invalid/server_error"] == metrics["gym/invalid/reported"] == 1
    assert metrics["gym/invalid/missing_reward"] == 1
    assert metrics["gym/invalid/malformed_body"] == 3
    assert metrics["total_reward/mean"] == 0.5


def test_a_batch_nobody_has_a_reward_for_has_no_figures_of_one(tokenizer: Any) -> None:
    out = rollout(tokenizer, ["raises", "silent"])
    assert out.final_batch["loss_multiplier"].tolist() == [0.0, 0.0]
    assert bool(torch.isnan(out.final_batch["total_reward"]).all())
    assert not [name for name in out.rollout_metrics if "reward" in name]


def test_a_history_that_is_not_contiguous_trains_the_sequence_that_is_its_row(
    tokenizer: Any,
) -> None:
    batch = rollout(tokenizer, ["drifted", "good"]).final_batch
    assert batch["reward_valid"].tolist() == [True, True]
    log = batch["message_log"][0]
    assert [(m["role"], m["token_ids"].tolist()) for m in log] == [
        ("user", PROMPT),
        ("assistant", [8, 9, 9]),
    ]


def test_setup_makes_our_actor() -> None:
    from rlbridge_nemo_rl import versions
    from rlbridge_nemo_rl.gym_agents import TolerantGym

    assert [module.NemoGym for module in versions.gym_actor_modules()] == [TolerantGym] * len(
        versions.gym_actor_modules()
    )
