"""Our driver on NeMo-RL's own Gym path, with a policy on a CPU behind a server like NeMo-RL's.

    python -m tests.nemo_rl.gym_driver_on_cpu --config native.yaml

What the server samples comes from the policy's weights of that moment, with their logprobs; it is
noted in `sampled.json`, beside what was trained on.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlbridge.testing.vllm_model import FakeModel, Sample
from rlbridge.testing.vllm_server import VllmServer
from rlbridge_nemo_rl import versions
from tests.nemo_rl.conftest import Threaded
from tests.nemo_rl.policies import LearningPolicy

ANSWERS = ["\\boxed{A}", "\\boxed{B}"]
_TRAINED = ("input_ids", "input_lengths", "token_mask", "generation_logprobs", "prev_logprobs")


class ServedPolicy(LearningPolicy):
    """A policy whose server has a URL, as NeMo-RL's `VllmGeneration` has."""

    cfg = {"vllm_cfg": {"max_model_len": 96, "async_engine": True}}  # noqa: RUF012

    def __init__(self, tokenizer: Any, model: str) -> None:
        super().__init__(tokenizer)
        self.server = VllmServer(
            kind="nemo_rl", routes=frozenset({"chat"}), token_chat=False, model=model,
            max_model_len=96,
        )  # fmt: skip
        self.server.fake = Sampling(self)
        self.running = Threaded(self.server)

    @property
    def dp_openai_server_base_urls(self) -> list[str]:
        return [f"{self.server.url}/v1"]

    def train(self, data: Any, loss_fn: Any, timer: Any = None, **more: Any) -> dict[str, Any]:
        found = super().train(data, loss_fn, timer, **more)
        self.trained[-1] |= {key: data[key].clone() for key in _TRAINED}
        self.trained[-1]["update_rows"] = torch.tensor(more.get("gbs", 0))
        return found


class Sampling(FakeModel):
    """Samples from the policy; logprobs are those of its weights at temperature 1."""

    def __init__(self, policy: LearningPolicy) -> None:
        super().__init__()
        self._policy = policy
        self.sampled: list[dict[str, Any]] = []

    def sample(self, prompt: Sequence[int], params: Mapping[str, Any], index: int = 0) -> Sample:
        eos = self.tokenizer.eos_token_id
        given = torch.tensor([list(prompt)])
        with torch.no_grad():
            ids = self._policy.model.generate(
                input_ids=given, attention_mask=torch.ones_like(given), do_sample=True, top_k=0,
                max_new_tokens=params["max_tokens"], pad_token_id=eos,
            )  # fmt: skip
            logprobs = self._policy._next_logprobs(ids)[0, len(prompt) - 1 :].tolist()
        new = ids[0, len(prompt) :].tolist()
        ended = new[-1] == eos
        if params["max_tokens"] > 1:  # else it is the gateway that looks what the engine can do
            self.sampled.append({"prompt": list(prompt), "token_ids": new, "logprobs": logprobs})
        text = new[:-1] if ended else new
        return Sample(new, logprobs, text, 0, "stop" if ended else "length", None)


def setup(
    config: Any,
    tokenizer: Any,
    dataset: Any,
    val_dataset: Any,
    kind: type[ServedPolicy] = ServedPolicy,
) -> tuple[Any, ...]:
    """The 13 values of `setup`, with Gym's actor made as it makes it."""
    from tests.nemo_rl.driver_on_cpu import setup as made

    policy = kind(tokenizer, config.policy["model_name"])
    inputs = {
        dataset[n]["extra_env_info"]["responses_create_params"]["input"][0]["content"]
        for n in range(len(dataset))
    }
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in sorted(inputs)
    ]
    prompts = [torch.tensor(tokenizer(text).input_ids) for text in rendered]
    policy.warm_up(prompts, ANSWERS, steps=200)
    parts = made(config, tokenizer, dataset, val_dataset, policy)
    return (*parts[:2], gym_actor(config, tokenizer), *parts[3:])


def gym_actor(config: Any, tokenizer: Any) -> Any:
    """Gym's actor as `setup` makes it, given engines that the gateway stands before."""
    import ray
    from nemo_rl.distributed.ray_actor_environment_registry import get_actor_python_env

    python = get_actor_python_env("nemo_rl.environments.nemo_gym.NemoGym")
    options = {"runtime_env": {"py_executable": python, "env_vars": dict(os.environ)}}
    actor = (
        versions.gym_actor_modules()[-1]
        .NemoGym.options(**options)
        .remote(
            {
                "model_name": config.policy["model_name"],
                "base_urls": [None],
                "initial_global_config_dict": config.env["nemo_gym"],
            }
        )
    )
    ray.get(actor._spinup.remote())
    if hasattr(actor, "set_tokenizer"):
        ray.get(actor.set_tokenizer.remote(tokenizer))
    return actor


def main(
    arguments: list[str],
    started: Callable[[Any, Any], None] | None = None,
    make: Callable[..., tuple[Any, ...]] = setup,
) -> int:
    """Train, and note what was sampled.

    Args:
        arguments: of the driver.
        started: called with the config and Gym's actor once the actor has started.
        make: stands for NeMo-RL's `setup`.
    """
    from nemo_rl.algorithms import grpo

    from rlbridge_nemo_rl import driver

    served: list[ServedPolicy] = []

    def noted(config: Any, *given: Any) -> tuple[Any, ...]:
        parts = make(config, *given)
        served.append(parts[0])
        if started is not None:
            started(config, parts[2])
        return parts

    grpo.setup = noted
    status = driver.main(arguments)
    for policy in served:
        policy.running.close()
        folder = Path(arguments[-1]).parent
        (folder / "sampled.json").write_text(json.dumps(policy.server.fake.sampled))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
