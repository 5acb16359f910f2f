"""A NeMo-RL environment whose rewards come from a Gym server. Never a number nobody computed.

NeMo-RL generates; this Ray actor asks `/verify`, all samples of a step at once, through one
client. A reward that could not be computed is NaN in the tensor (see `validity`) and a reason in
the metadata. Rows with tools are rolled out over several turns in a session of their own.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from pydantic import Field
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward, ValidReward
from rlbridge.errors import ConfigError, GymError
from rlbridge.ledger import RewardLedger
from rlbridge_nemo_rl import restarts
from rlbridge_nemo_rl.episodes import Episodes, Gyms, Outcome
from rlbridge_nemo_rl.processor import INDEX, OVERLONG, SPLIT
from rlbridge_nemo_rl.validity import ENDED_ROLE, NO_REWARD, OPEN_ROLE

VERDICT = "verdict"
"""Metadata key: what became of the reward, as plain data."""


class EnvironmentConfig(GymConfig):
    """`env.rlbridge_gym` in NeMo-RL's YAML: the keys of the Gym client and these."""

    servers: dict[str, str] = Field(default_factory=dict)
    """Base URLs of other reward servers by `agent_ref.name`; rows of other agents go to url."""
    ledger: str | None = None
    """Folder for the record of every reward; none keeps no record."""
    headers_file: str | None = None
    """JSON file of request headers, for keys that must not stand in a YAML."""
    policy: str | None = None
    """The policy's folder or name: its tokenizer is needed where rows have tools."""
    max_turns: int = Field(default=1, ge=1)
    """Turns a rollout may have; must be NeMo-RL's grpo.max_rollout_turns, or rollouts end before
    they are verified."""
    max_tool_output_chars: int = Field(default=8192, ge=1)
    """A longer tool result is cut, and says so."""
    parallel_tool_calls: bool = False
    """Send a turn's tool calls at once instead of in turn."""


@ray.remote(max_restarts=-1, max_task_retries=-1)  # type: ignore[untyped-decorator,unused-ignore]
class GymEnvironment(EnvironmentInterface):  # type: ignore[misc,unused-ignore]
    """The actor behind `env_name: rlbridge_gym`; `cfg` is that section (`EnvironmentConfig`).

    Restarted by Ray when its process dies: single-turn steps are asked again, rollouts that were
    in a session become invalid (`lost_session`).
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self._config = parse_config(cfg)
        self._gyms = Gyms(client_config(self._config), self._config.servers)
        self._episodes = Episodes(self._gyms, self._config)
        self._folder = Path(self._config.ledger) if self._config.ledger else None
        self._ledger = RewardLedger(self._folder) if self._folder else None
        self._samples: Counter[tuple[str, int]] = Counter()
        self._counts: Counter[str] = Counter()
        self._step, lines = restarts.remembered(self._folder) if self._folder else (1, [])
        self._judged = {line["sample_id"]: restarts.reward_of(line) for line in lines}
        for line in lines:
            self._samples[line["split"], line["row"]] += 1
            self._count(restarts.reward_of(line), line["split"])

    def set_step(self, step: int) -> None:
        """Say which training step rewards are asked for from now on; NeMo-RL doesn't.

        In async GRPO that is the step the trainer is at: rewards of samples for later steps are
        recorded under it too.
        """
        self._step = step
        self._samples.clear()
        if self._folder:
            restarts.keep_step(self._folder, step)

    async def step(  # type: ignore[override,unused-ignore]
        self, message_log_batch: list[Any], metadata: list[Any]
    ) -> EnvironmentReturn[Any]:
        """Judge, or answer the tool calls of, the last turn of each sample.

        Args:
            message_log_batch: per sample its messages (`role`, `content`).
            metadata: per sample what `process_row` put into `extra_env_info`.

        Returns:
            `rewards` float [batch], NaN where there is none and 0 for a turn that isn't the
            last; `terminateds` bool [batch]; `metadata` with a `verdict`.
        """
        call = restarts.this_call()
        work = (
            self._turn(log, info, f"{call}/{place}")
            for place, (log, info) in enumerate(zip(message_log_batch, metadata, strict=True))
        )
        outcomes = await asyncio.gather(*work)
        ended = [outcome.reward is not None for outcome in outcomes]
        return EnvironmentReturn(
            observations=[
                {"role": ENDED_ROLE if done else OPEN_ROLE, "content": outcome.observation}
                for outcome, done in zip(outcomes, ended, strict=True)
            ],
            metadata=[
                {**info, **outcome.state, VERDICT: _verdict(outcome.reward)}
                for info, outcome in zip(metadata, outcomes, strict=True)
            ],
            next_stop_strings=[None] * len(outcomes),
            rewards=torch.tensor(
                [_number(outcome.reward) for outcome in outcomes], dtype=torch.float32
            ),
            terminateds=torch.tensor(ended, dtype=torch.bool),
            answers=[None] * len(outcomes),
        )

    async def _turn(
        self, log: list[Mapping[str, Any]], info: Mapping[str, Any], sample_id: str
    ) -> Outcome:
        if sample_id in self._judged:
            return Outcome(self._judged[sample_id])
        if info.get(OVERLONG):
            reason = "the prompt is longer than data.max_input_seq_length; nobody was asked"
            outcome = Outcome(InvalidReward(FailureClass.BAD_ROW, reason))
        else:
            try:
                outcome = await self._episodes.turn(log, info)
            except ConfigError:
                raise
            except GymError as error:  # a session that couldn't be opened, or was lost
                outcome = Outcome(
                    InvalidReward(FailureClass.LOST_SESSION, str(error), attempts=error.attempts)
                )
        if outcome.reward is not None:
            self._note(outcome.reward, info, sample_id)
        return outcome

    def _note(self, reward: Reward, info: Mapping[str, Any], sample_id: str) -> None:
        split, row = str(info.get(SPLIT, "train")), int(info.get(INDEX, -1))
        self._count(reward, split)
        if self._ledger is None:
            return
        sample = self._samples[split, row]
        self._samples[split, row] += 1
        self._ledger.record(
            reward, step=self._step, row=row, uid=str(row), sample=sample, split=split,
            sample_id=sample_id,
        )  # fmt: skip

    def _count(self, reward: Reward, split: str) -> None:
        place = "" if split == "train" else f"{split}/"
        if isinstance(reward, ValidReward):
            self._counts[f"{place}valid"] += 1
            self._counts[f"{place}masked_by_environment"] += reward.mask_sample
        else:
            self._counts[f"{place}invalid/{reward.failure.value}"] += 1

    def metrics(self) -> dict[str, float]:
        """`gym/valid`, `gym/invalid/<class>`, ... since the last call.

        Of validation: `gym/validation/valid`, ...
        """
        found = {f"gym/{name}": float(count) for name, count in self._counts.items() if count}
        self._counts.clear()
        return found | {"gym/requests_total": float(self._gyms.requests)}

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The batch as it is, and `metrics()`. NeMo-RL 0.7 itself never calls this."""
        return batch, self.metrics()

    async def shutdown(self) -> None:
        """Close all connections."""
        await self._gyms.aclose()


class OnThisNode:
    """Stands for `GymEnvironment` where NeMo-RL makes it, and makes it on the launcher's node.

    NeMo-RL gives it the launcher's Python, which `uv run --with` keeps on that node alone, as do
    loopback URLs and a run's private files. It needs no CPU of its own: it waits.
    """

    @staticmethod
    def options(**options: Any) -> Any:
        """The actor class with Ray's options."""
        here = ray.get_runtime_context().get_node_id()
        pinned = NodeAffinitySchedulingStrategy(here, soft=False)
        return GymEnvironment.options(  # type: ignore[attr-defined,unused-ignore]
            num_cpus=0, scheduling_strategy=pinned, **options
        )


def parse_config(cfg: Mapping[str, Any]) -> EnvironmentConfig:
    """`env.rlbridge_gym`, checked.

    Raises:
        ConfigError: a key is unknown, or its value is wrong.
    """
    return EnvironmentConfig.parse(dict(cfg), where="env.rlbridge_gym")


def client_config(config: EnvironmentConfig) -> GymConfig:
    """The client's part of an environment's config, with the headers of its file."""
    own = set(EnvironmentConfig.model_fields) - set(GymConfig.model_fields)
    plain = config.model_dump(exclude=own | {"headers"}, exclude_defaults=True)
    headers = {name: value.get_secret_value() for name, value in config.headers.items()}
    if config.headers_file:
        headers |= json.loads(Path(config.headers_file).read_bytes())
    return GymConfig.parse({**plain, "headers": headers}, where="env.rlbridge_gym")


def _number(reward: Reward | None) -> float:
    if reward is None:
        return 0.0  # adds nothing: the rollout goes on
    if isinstance(reward, InvalidReward) or reward.mask_sample:
        return NO_REWARD
    return reward.value


def _verdict(reward: Reward | None) -> dict[str, Any] | None:
    if reward is None:
        return None
    if isinstance(reward, InvalidReward):
        return {
            "valid": False,
            "failure": reward.failure.value,
            "fault": reward.fault.value,
            "detail": reward.detail,
        }
    return {
        "valid": True,
        "reward": reward.value,
        "components": dict(reward.components),
        "mask_sample": reward.mask_sample,
    }
