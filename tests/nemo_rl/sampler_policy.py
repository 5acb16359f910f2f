"""A policy whose generation lives in a Ray actor, so that another process can sample from it.

Async GRPO samples from its collector's process. NeMo-RL's own engines are GPU workers; here the
actor holds a tiny Llama, and a refit really hands it the learner's weights.
"""

import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import ray
import torch
from nemo_rl.models.generation.interfaces import GenerationInterface

from tests.nemo_rl.policies import LearningPolicy

FAILS, HANGS = "[the engine fails]", "[the engine hangs]"
"""What in a prompt makes its generation fail, or never return."""


@ray.remote(num_cpus=0)
class Sampler:
    """The engine."""

    def __init__(self, tokenizer: Any) -> None:
        torch.set_num_threads(1)
        self._policy = LearningPolicy(tokenizer)
        self._tokenizer = tokenizer
        self._seen: dict[str, Any] = {"refits": 0, "sampled": 0, "packages": set()}

    def load(self, weights: dict[str, torch.Tensor]) -> bool:
        """Take the learner's weights over."""
        self._policy.model.load_state_dict(weights)
        self._seen["refits"] += 1
        return True

    def generate(self, data: Any, package: str) -> Any:
        """Sample; `package` says where the caller's rlbridge_nemo_rl was imported from."""
        prompt = self._tokenizer.decode(data["input_ids"][0])
        if FAILS in prompt and self._seen["sampled"] % 2:
            self._seen["sampled"] += 1
            raise RuntimeError("the engine failed")
        while HANGS in prompt:
            time.sleep(1)
        self._seen["sampled"] += 1
        self._seen["packages"].add(package)
        return self._policy.generate(data)

    def seen(self) -> dict[str, Any]:
        """Refits, samples and callers so far."""
        return {**self._seen, "packages": sorted(self._seen["packages"])}


class StandInGeneration(GenerationInterface):
    """NeMo-RL's generation interface, as far as nothing is generated; pickles, as vLLM's does."""

    def init_collective(self, *_: Any) -> list[Any]:
        return []

    def prepare_for_generation(self, *_: Any, **__: Any) -> bool:
        return True

    def finish_generation(self, *_: Any, **__: Any) -> bool:
        return True

    def update_weights_from_collective(self) -> list[Any]:
        """The learner's `broadcast_weights_for_collective` hands them over."""
        return [ray.put(True)]

    update_weights_via_ipc_zmq = update_weights_from_collective

    def clear_logger_metrics(self) -> None:
        pass

    def get_logger_metrics(self) -> dict[str, Any]:
        return {}

    def shutdown(self) -> bool:
        return True


class SamplerGeneration(StandInGeneration):
    """To a `Sampler`."""

    cfg: ClassVar[Any] = {
        "backend": "vllm",
        "vllm_cfg": {"max_model_len": 128, "async_engine": True},
    }

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def shutdown(self) -> bool:
        ray.kill(self.sampler)
        return True

    def generate(self, data: Any, greedy: bool = False) -> Any:
        import rlbridge_nemo_rl

        return ray.get(self.sampler.generate.remote(data, rlbridge_nemo_rl.__file__))

    async def generate_async(self, data: Any, greedy: bool = False) -> AsyncIterator[Any]:
        import rlbridge_nemo_rl

        made = await self.sampler.generate.remote(data, rlbridge_nemo_rl.__file__)
        made["gen_leader_worker_idx"] = [0]  # NeMo-RL counts tokens by worker
        yield 0, made


class AsyncLearningPolicy(LearningPolicy):
    """A `LearningPolicy` that hands its weights to a `Sampler` at each refit."""

    def __init__(self, tokenizer: Any, sampler: Any) -> None:
        super().__init__(tokenizer)
        self._sampler = sampler

    @property
    def sharding_annotations(self) -> Any:
        from nemo_rl.distributed.named_sharding import NamedSharding

        return NamedSharding(layout=[0], names=["data_parallel"])

    def broadcast_weights_for_collective(self, **_: Any) -> list[Any]:
        weights = {name: value.detach() for name, value in self.model.state_dict().items()}
        return [self._sampler.load.remote(weights)]

    def stream_weights_via_ipc_zmq(self, **_: Any) -> list[Any]:
        """What a refit is called where generation is colocated."""
        return self.broadcast_weights_for_collective()

    def shutdown(self) -> bool:
        return True
