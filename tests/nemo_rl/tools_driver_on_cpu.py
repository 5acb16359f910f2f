"""Our driver with NeMo-RL's real GRPO loop and the policy of examples/counter_policy.py.

    python -m tests.nemo_rl.tools_driver_on_cpu --config native.yaml

That policy calls tools, and its weights are read from `policy.model_name`.
"""

import sys
from typing import Any


def setup(config: Any, tokenizer: Any, dataset: Any, val_dataset: Any) -> tuple[Any, ...]:
    """The 13 values of v0.7's `setup`."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.nemo_rl.driver_on_cpu import setup as made
    from tests.nemo_rl.policies import LearningPolicy

    torch.manual_seed(0)
    policy = LearningPolicy(tokenizer, config.policy["generation"]["max_new_tokens"])
    policy.model = AutoModelForCausalLM.from_pretrained(config.policy["model_name"])
    policy._optimizer = torch.optim.Adam(policy.model.parameters(), lr=1e-4)
    return made(config, tokenizer, dataset, val_dataset, policy)


if __name__ == "__main__":
    from nemo_rl.algorithms import grpo

    from rlbridge_nemo_rl import driver

    grpo.setup = setup
    sys.exit(driver.main(sys.argv[1:]))
