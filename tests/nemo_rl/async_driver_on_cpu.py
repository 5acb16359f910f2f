"""Our driver with NeMo-RL's real async GRPO: its loop, collector and replay buffer, on a CPU.

    python -m tests.nemo_rl.async_driver_on_cpu --config native.yaml

What GPUs would do is a `Sampler` actor and an `AsyncLearningPolicy`, really refitted.
"""

import json
import sys
from pathlib import Path
from typing import Any

engines: list[Any] = []


def setup(config: Any, tokenizer: Any, dataset: Any, val_dataset: Any) -> tuple[Any, ...]:
    """The 13 values of v0.7's `setup`, generation not colocated."""
    import ray

    from rlbridge_nemo_rl import versions
    from tests.nemo_rl.driver_on_cpu import setup as synchronous
    from tests.nemo_rl.driver_on_cpu import warm
    from tests.nemo_rl.sampler_policy import AsyncLearningPolicy, Sampler, SamplerGeneration

    sampler = Sampler.remote(tokenizer)
    policy = warm(AsyncLearningPolicy(tokenizer, sampler), dataset)
    made = synchronous(config, tokenizer, dataset, val_dataset, policy)

    told = Path(versions.section(config, "rlbridge")["run_dir"], "sampler.json")

    class Told(SamplerGeneration):
        """Says what the engine saw, before it is gone."""

        def shutdown(self) -> bool:
            if told.exists():
                return True
            seen = ray.get(self.sampler.seen.remote(), timeout=60)
            told.write_text(json.dumps(seen))
            return super().shutdown()

        def __reduce__(self) -> Any:
            return SamplerGeneration, (self.sampler,)

    engines.append(Told(sampler))
    return (policy, engines[0], *made[2:])


if __name__ == "__main__":
    from nemo_rl.algorithms import grpo
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES

    from rlbridge_nemo_rl import driver

    for name in ("AsyncTrajectoryCollector", "ReplayBuffer"):  # NeMo-RL's: vLLM's environment
        fqn = f"nemo_rl.algorithms.async_utils.{name}"
        ACTOR_ENVIRONMENT_REGISTRY[fqn] = PY_EXECUTABLES.SYSTEM
    grpo.setup = setup
    status = driver.main(sys.argv[1:])
    for engine in engines if status == 0 else ():  # else it may hang
        engine.shutdown()  # v0.6's loop leaves it running
    sys.exit(status)
