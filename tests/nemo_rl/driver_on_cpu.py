"""Our driver with NeMo-RL's real GRPO loop, loss, data and environments, and a policy on a CPU.

    python -m tests.nemo_rl.driver_on_cpu --config native.yaml

NeMo-RL's `setup` makes workers that need GPUs: here it makes a `LearningPolicy` in this process.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.nemo_rl.policies import LearningPolicy


def setup(config: Any, tokenizer: Any, dataset: Any, val_dataset: Any) -> tuple[Any, ...]:
    """The 13 values of v0.7's `setup`."""
    from nemo_rl.algorithms.grpo import _default_grpo_save_state
    from nemo_rl.algorithms.loss import ClippedPGLossFn
    from nemo_rl.data.collate_fn import rl_collate_fn
    from nemo_rl.utils.checkpoint import CheckpointManager
    from nemo_rl.utils.logger import Logger
    from torchdata.stateful_dataloader import StatefulDataLoader

    policy = LearningPolicy(tokenizer)
    prompts = [dataset[i]["message_log"][0]["token_ids"] for i in range(len(dataset))]
    policy.warm_up(prompts, ["2", "3", "4", "5"])
    before = policy.model.lm_head.weight.detach().clone()

    class Noting(CheckpointManager):
        """Writes what was trained on at the end of the run, beside the run's other files."""

        def __del__(self) -> None:
            moved = float((policy.model.lm_head.weight - before).abs().max())
            steps = [{k: v.tolist() for k, v in step.items()} for step in policy.trained]
            path = Path(config.rlbridge["run_dir"]) / "trained.json"
            path.write_text(json.dumps({"moved": moved, "steps": steps}))

    loader = StatefulDataLoader(
        dataset,
        batch_size=config.grpo["num_prompts_per_step"],
        shuffle=config.data["shuffle"],
        collate_fn=rl_collate_fn,
        drop_last=True,
    )
    val_loader = val_dataset and StatefulDataLoader(
        val_dataset, batch_size=config.grpo["val_batch_size"], collate_fn=rl_collate_fn
    )
    return (
        policy, policy, None, None, loader, val_loader, ClippedPGLossFn(config.loss_fn),
        Logger(config.logger), Noting(config.checkpointing), _default_grpo_save_state(), config,
        {}, {},
    )  # fmt: skip


if __name__ == "__main__":
    from nemo_rl.algorithms import grpo

    from rlbridge_nemo_rl import driver

    grpo.setup = setup
    sys.exit(driver.main(sys.argv[1:]))
