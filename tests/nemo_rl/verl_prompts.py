"""What verl samples from, row by row; run where verl is.

Reads `[rows, prompt, tokenizer's folder, answer]` from stdin and writes the prompts' token IDs to
`answer`: our dataset's rows through verl's own single-turn loop, those with tools through ours.
"""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from rlbridge.rows import tools_of
from rlbridge.testing.server import gym_server
from rlbridge_verl.agent_loop import NeMoGymAgentLoop
from rlbridge_verl.dataset import NeMoGymDataset

rows, prompt, folder, answer = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
sampled_from: list[list[int]] = []


class Manager:
    """verl's server manager, as far as these loops ask it."""

    async def generate(self, request_id: str, *, prompt_ids: list[int], **_: Any) -> Any:
        sampled_from.append(list(prompt_ids))
        end = [tokenizer.eos_token_id]
        return SimpleNamespace(
            token_ids=end, log_probs=[-0.5], stop_reason="completed", num_preempted=0,
            extra_fields={"global_steps": 1}, routed_experts=None,
        )  # fmt: skip


async def main() -> None:
    section = {"max_prompt_length": 300, "train_files": [rows], "nemo_gym_prompt": prompt}
    dataset = NeMoGymDataset([rows], tokenizer, OmegaConf.create(section))
    async with gym_server() as gym:
        turns = {"max_assistant_turns": 4, "max_tool_response_length": 99, "max_parallel_calls": 1}
        config = OmegaConf.create(
            {
                "actor_rollout_ref": {
                    "model": {"path": folder},
                    "rollout": {
                        "response_length": 32, "prompt_length": 300, "max_model_len": 400,
                        "multi_turn": turns,
                    },
                },
                "data": {},
                "reward": {"nemo_gym": {"url": gym.url}},
            }
        )  # fmt: skip
        for index in range(len(dataset)):
            item = dataset[index]
            row = json.loads(item["extra_info"]["gym_row"])
            made = (NeMoGymAgentLoop if tools_of(row) else SingleTurnAgentLoop)(
                trainer_config=DictConfigWrap(config), server_manager=Manager(),
                tokenizer=tokenizer, processor=None, dataset_cls=NeMoGymDataset,
                data_config=DictConfigWrap(config.data), tools=None,
            )  # fmt: skip
            await made.run({"max_tokens": 8}, **item, uid="u", session_id=0)


asyncio.run(main())
Path(answer).write_text(json.dumps(sampled_from))
