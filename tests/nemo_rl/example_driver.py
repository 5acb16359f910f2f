"""`driver_on_cpu` with a policy that has learnt to give some of `$ANSWERS`, a JSON list."""

import json
import os
import sys
from typing import Any

from tests.nemo_rl import driver_on_cpu
from tests.nemo_rl.policies import LearningPolicy


def setup(config: Any, tokenizer: Any, dataset: Any, val_dataset: Any) -> tuple[Any, ...]:
    """NeMo-RL's `setup` with that policy."""
    policy = LearningPolicy(tokenizer, config.policy["generation"]["max_new_tokens"])
    prompts = [dataset[index]["message_log"][0]["token_ids"] for index in range(len(dataset))]
    policy.warm_up(prompts, json.loads(os.environ["ANSWERS"]), steps=150)
    return driver_on_cpu.setup(config, tokenizer, dataset, val_dataset, policy)


if __name__ == "__main__":
    from nemo_rl.algorithms import grpo

    from rlbridge_nemo_rl import driver

    grpo.setup = setup
    sys.exit(driver.main(sys.argv[1:]))
