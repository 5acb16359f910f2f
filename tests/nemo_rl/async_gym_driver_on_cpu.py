"""Our driver with NeMo-RL's real async GRPO where Gym's agents roll out, on a CPU.

    python -m tests.nemo_rl.async_gym_driver_on_cpu --config native.yaml

The engine is a model of its own behind a server like NeMo-RL's, which a refit really hands the
learner's weights; `sampled.json` says of each answer by which weights it came.
"""

import copy
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from rlbridge.testing.vllm_model import Sample
from tests.nemo_rl import gym_driver_on_cpu
from tests.nemo_rl.gym_driver_on_cpu import Sampling, ServedPolicy
from tests.nemo_rl.sampler_policy import StandInGeneration


class EngineUrls(StandInGeneration):
    """What NeMo-RL hands its collector of engines: their URLs."""

    cfg: ClassVar[Any] = {
        "backend": "vllm",
        "vllm_cfg": {"max_model_len": 96, "async_engine": True},
    }

    def __init__(self, urls: list[str]) -> None:
        self.dp_openai_server_base_urls = urls

    def generate(self, data: Any, greedy: bool = False) -> Any:
        raise AssertionError("on the Gym path engines are asked over HTTP alone")


class Engine(Sampling):
    """Samples from weights of its own, at first from dummy ones, as vLLM does."""

    def __init__(self, policy: ServedPolicy) -> None:
        own = copy.copy(policy)
        own.model = copy.deepcopy(policy.model)
        for parameter in own.model.parameters():
            parameter.data.zero_()
        super().__init__(own)
        self.refits = 0
        self._busy = threading.Lock()

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the learner's weights over, between two answers."""
        with self._busy:
            self._policy.model.load_state_dict(weights)
            self.refits += 1

    def sample(self, prompt: Sequence[int], params: Mapping[str, Any], index: int = 0) -> Sample:
        with self._busy:
            before = len(self.sampled)
            made = super().sample(prompt, params, index)
            for one in self.sampled[before:]:
                one["refits"] = self.refits
            return made


class AsyncServedPolicy(ServedPolicy):
    """A policy whose engine is refitted."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        super().__init__(tokenizer, model)
        self.server.fake = Engine(self)

    @property
    def sharding_annotations(self) -> Any:
        from nemo_rl.distributed.named_sharding import NamedSharding

        return NamedSharding(layout=[0], names=["data_parallel"])

    def broadcast_weights_for_collective(self, **_: Any) -> list[Any]:
        import ray

        self.server.fake.load(self.model.state_dict())
        return [ray.put(True)]

    def shutdown(self) -> bool:
        return True


def setup(config: Any, tokenizer: Any, dataset: Any, val_dataset: Any) -> tuple[Any, ...]:
    """The 13 values of `setup`, generation not colocated."""
    made = gym_driver_on_cpu.setup(config, tokenizer, dataset, val_dataset, AsyncServedPolicy)
    policy, _, *rest = made
    return policy, EngineUrls([f"{policy.server.url}/v1"]), *rest


def collect_here() -> None:
    """Let NeMo-RL's collector and buffer run in this Python: theirs is vLLM's."""
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES

    for name in ("AsyncTrajectoryCollector", "ReplayBuffer"):
        fqn = f"nemo_rl.algorithms.async_utils.{name}"
        ACTOR_ENVIRONMENT_REGISTRY[fqn] = PY_EXECUTABLES.SYSTEM


if __name__ == "__main__":
    collect_here()
    sys.exit(gym_driver_on_cpu.main(sys.argv[1:], make=setup))
