"""Our driver with NeMo-RL's real GRPO loop, loss, data and environments, and a policy on a CPU.

    python -m tests.nemo_rl.driver_on_cpu --config native.yaml

NeMo-RL's `setup` makes workers that need GPUs: here it makes a `LearningPolicy` in this process.
"""

import atexit
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.nemo_rl.policies import LearningPolicy


def setup(
    config: Any, tokenizer: Any, dataset: Any, val_dataset: Any, policy: Any = None
) -> tuple[Any, ...]:
    """The 13 values of v0.7's `setup`, resumed from the last checkpoint if there is one.

    Args:
        policy: a trained one; None makes one that has learnt to say a digit.
    """
    from nemo_rl.algorithms.grpo import _default_grpo_save_state
    from nemo_rl.algorithms.loss import ClippedPGLossFn
    from nemo_rl.data.collate_fn import rl_collate_fn
    from nemo_rl.utils.checkpoint import CheckpointManager
    from nemo_rl.utils.logger import Logger
    from torchdata.stateful_dataloader import StatefulDataLoader

    if policy is None:
        policy = warm(LearningPolicy(tokenizer), dataset)
    before = policy.model.lm_head.weight.detach().clone()

    def note() -> None:
        """Write what was trained on at the end of the run, beside the run's other files."""
        moved = float((policy.model.lm_head.weight.detach() - before).abs().max())
        steps = [{k: v.tolist() for k, v in step.items()} for step in policy.trained]
        path = Path(config.rlbridge["run_dir"]) / "trained.json"
        path.write_text(json.dumps({"moved": moved, "steps": steps}))

    atexit.register(note)
    checkpointer = CheckpointManager(config.checkpointing)
    newest = checkpointer.get_latest_checkpoint_path()
    loader = StatefulDataLoader(
        dataset,
        batch_size=config.grpo["num_prompts_per_step"],
        shuffle=config.data["shuffle"],
        collate_fn=rl_collate_fn,
        drop_last=True,
    )
    if newest:
        policy.load_checkpoint(Path(newest, "policy", "weights"))
        loader.load_state_dict(torch.load(Path(newest, "train_dataloader.pt")))
    val_loader = val_dataset and StatefulDataLoader(
        val_dataset, batch_size=config.grpo["val_batch_size"], collate_fn=rl_collate_fn
    )
    return (
        policy, policy, None, None, loader, val_loader, ClippedPGLossFn(config.loss_fn),
        Logger(config.logger), checkpointer,
        checkpointer.load_training_info(newest) or _default_grpo_save_state(), config, {}, {},
    )  # fmt: skip


def warm(policy: LearningPolicy, dataset: Any) -> LearningPolicy:
    """Teach a policy to answer with a digit."""
    prompts = [dataset[i]["message_log"][0]["token_ids"] for i in range(len(dataset))]
    policy.warm_up(prompts, ["2", "3", "4", "5"])
    return policy


if __name__ == "__main__":
    from nemo_rl.algorithms import grpo

    from rlbridge_nemo_rl import driver

    grpo.setup = setup
    sys.exit(driver.main(sys.argv[1:]))
