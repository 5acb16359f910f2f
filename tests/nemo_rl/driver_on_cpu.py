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
    """What this NeMo-RL's `setup` makes, resumed from the last checkpoint if there is one.

    Args:
        policy: a trained one; None makes one that has learnt to say a digit.
    """
    from nemo_rl.algorithms import grpo
    from nemo_rl.algorithms.loss import ClippedPGLossFn
    from nemo_rl.data.collate_fn import rl_collate_fn
    from nemo_rl.utils.checkpoint import CheckpointManager
    from nemo_rl.utils.logger import Logger
    from torchdata.stateful_dataloader import StatefulDataLoader

    from rlbridge_nemo_rl import versions

    ours, grpo_config, data = (
        versions.section(config, key) for key in ("rlbridge", "grpo", "data")
    )
    checkpoints, logging = (versions.section(config, key) for key in ("checkpointing", "logger"))
    loss_fn = ClippedPGLossFn(versions.section(config, "loss_fn"))
    if policy is None:
        policy = warm(LearningPolicy(tokenizer), dataset)
    before = policy.model.lm_head.weight.detach().clone()

    def note() -> None:
        """Write what was trained on at the end of the run, beside the run's other files."""
        moved = float((policy.model.lm_head.weight.detach() - before).abs().max())
        steps = [{k: v.tolist() for k, v in step.items()} for step in policy.trained]
        path = Path(ours["run_dir"]) / "trained.json"
        path.write_text(json.dumps({"moved": moved, "steps": steps}))

    atexit.register(note)
    checkpointer = CheckpointManager(checkpoints)
    newest = checkpointer.get_latest_checkpoint_path()
    loader = StatefulDataLoader(
        dataset,
        batch_size=versions.value(grpo_config, "num_prompts_per_step"),
        shuffle=data["shuffle"],
        collate_fn=rl_collate_fn,
        drop_last=True,
    )
    if newest:
        policy.load_checkpoint(Path(newest, "policy", "weights"))
        loader.load_state_dict(torch.load(Path(newest, "train_dataloader.pt")))
    val_loader = val_dataset and StatefulDataLoader(
        val_dataset,
        batch_size=versions.value(grpo_config, "val_batch_size"),
        collate_fn=rl_collate_fn,
    )
    rest = (
        loader, val_loader, loss_fn, Logger(logging), checkpointer,
        save_state(checkpointer.load_training_info(newest)), config,
    )  # fmt: skip
    if not versions.known(grpo.async_grpo_train, {"teacher_worker_groups": {}}):  # v0.6
        return (policy, policy, None, *rest)
    return (policy, policy, None, None, *rest, {}, {})


def save_state(loaded: Any) -> Any:
    """Where training stands, in this NeMo-RL's form."""
    from nemo_rl.algorithms import grpo

    if hasattr(grpo, "_get_grpo_save_state"):
        return grpo._get_grpo_save_state(loaded)
    return loaded or grpo._default_grpo_save_state()


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
