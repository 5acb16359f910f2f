"""Golden rollouts through our verl adapter and verl's own GRPO advantages; run where verl is.

Reads `[paths, rewards, groups, answer]` from stdin and writes a list to `answer`: for each
rollout the `token_ids`, `mask`, `logprobs` and `advantages` of the sequence that is its row on
NeMo-RL, and under `all` those of all its sequences but for the advantages, which are the rollout's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from rlbridge.contracts.codecs import files
from rlbridge.onpolicy.build import build
from rlbridge_nemo_rl.sequences import representative
from rlbridge_verl.trajectory import outputs_of


def whole(output: Any) -> dict[str, Any]:
    before = len(output.prompt_ids)
    return {
        "token_ids": [*output.prompt_ids, *output.response_ids],
        "mask": [0] * before + output.response_mask,
        "logprobs": [0.0] * before + output.response_logprobs,
    }


paths, rewards, groups, answer = json.load(sys.stdin)
outputs, everything = [], []
for path in paths:
    built = build(files.rollout_from_json(json.loads(Path(path).read_text())["rollout"]))
    made = outputs_of(
        built.sequences, response_length=4096, num_turns=2, metrics=AgentLoopMetrics()
    )
    trained = [one for one in built.sequences if one.trained_tokens]
    outputs.append(made[trained.index(representative(built))])
    everything.append([whole(output) for output in made])
width = max(len(output.response_ids) for output in outputs)
mask = torch.zeros(len(outputs), width)
scores = torch.zeros(len(outputs), width)
for row, (output, reward) in enumerate(zip(outputs, rewards, strict=True)):
    mask[row, : len(output.response_mask)] = torch.tensor(output.response_mask, dtype=torch.float)
    scores[row, len(output.response_ids) - 1] = reward
advantages, _ = compute_grpo_outcome_advantage(
    scores, mask, np.array(groups), norm_adv_by_std_in_grpo=True
)
found = []
for output, row, made in zip(outputs, advantages.tolist(), everything, strict=True):
    given = [0.0] * len(output.prompt_ids) + row[: len(output.response_ids)]
    found.append({**whole(output), "advantages": given, "all": made})
Path(answer).write_text(json.dumps(found))
