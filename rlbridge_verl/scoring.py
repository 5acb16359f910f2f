"""From a reward to what verl takes, for reward manager, function and agent loops alike.

A valid reward becomes a score and flat figures. An invalid one raises, which is how verl's V1
trainer leaves a trajectory out; before that its class is left in the TransferQueue, partition
`GYM_PARTITION`, where `ValidRewardSampler` finds and counts it. Never invents a number.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from rlbridge.contracts.reward import InvalidReward, Reward, ValidReward
from rlbridge.errors import ConfigError, GymError
from rlbridge.gym import GymClient
from rlbridge.ledger import RewardLedger
from rlbridge_verl.settings import GYM_ROW, SPLIT, GymSection, environment_of

GYM_PARTITION = "gym"
"""TransferQueue partition for what is known of trajectories that verl never gets."""
MASKED = "masked"
"""The class of a reward that is valid but whose environment wants the sample masked."""
ENGINE_FAILED = "engine_failed"
"""The class of a rollout whose generation failed; nobody was asked for a reward."""


class InvalidRewardError(GymError):
    """This trajectory has no reward; verl drops it. The message says why."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Which trajectory a reward belongs to."""

    row: Mapping[str, Any]
    environment: str
    step: int
    index: int
    uid: str
    sample: int
    split: str

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Origin":
        """From the columns of a trajectory.

        Raises:
            ConfigError: the dataset doesn't hand the Gym row over.
        """
        extra = fields.get("extra_info") or {}
        text = extra.get(GYM_ROW)
        if text is None:
            raise ConfigError(
                f"column extra_info holds no {GYM_ROW!r}; set data.custom_cls.path="
                "pkg://rlbridge_verl and data.custom_cls.name=NeMoGymDataset, or write each Gym "
                f"row's JSON text to extra_info.{GYM_ROW}"
            )
        row: dict[str, Any] = orjson.loads(str(text))
        return cls(
            row=row,
            environment=environment_of(row),
            step=int(fields.get("global_steps", 0)),
            index=int(fields.get("index", extra.get("index", -1))),
            uid=str(fields.get("uid", "")),
            sample=int(fields.get("session_id", 0)),
            split=str(extra.get(SPLIT, "train")),
        )


class Scorer:
    """One process's clients, by environment, and its ledger.

    Args:
        section: `reward.nemo_gym`.
    """

    def __init__(self, section: GymSection) -> None:
        self._section = section
        self._clients: dict[str, GymClient] = {}
        self._by_url: dict[str, GymClient] = {}
        self._ledger = RewardLedger(section.ledger) if section.ledger else None

    def client(self, environment: str) -> GymClient:
        """The client for rows of this environment; equal URLs share one."""
        if environment not in self._clients:
            config = self._section.client_config(environment)
            shared = self._by_url.setdefault(config.url, GymClient(config))
            self._clients[environment] = shared
        return self._clients[environment]

    async def settle(self, reward: Reward, origin: Origin) -> dict[str, Any]:
        """Record an outcome and give verl its score.

        Returns:
            `reward_score` (float) and `reward_extra_info` (flat numbers).

        Raises:
            InvalidRewardError: there is none; the trajectory must not be trained on.
        """
        if self._ledger is not None:
            self._ledger.record(
                reward,
                step=origin.step,
                row=origin.index,
                uid=origin.uid,
                sample=origin.sample,
                split=origin.split,
            )
        if isinstance(reward, InvalidReward):
            await tell_sampler(origin, reward.failure.value)
            raise InvalidRewardError(
                f"row {origin.index} has no reward ({reward.failure}, fault: "
                f"{reward.fault}, {reward.attempts} attempts): {reward.detail}; "
                "its sample is masked",
                attempts=reward.attempts,
            )
        if reward.mask_sample:
            await tell_sampler(origin, MASKED)
            raise InvalidRewardError(
                f"row {origin.index}: the environment asks to mask this sample"
            )
        return {"reward_score": reward.value, "reward_extra_info": self.extra_info(reward)}

    def extra_info(self, reward: ValidReward) -> dict[str, float | None]:
        """Figures for verl's loggers. Never named `acc`: verl counts a missing `acc` as 0."""
        parts: Mapping[str, float | None] = reward.components
        if self._section.components:
            parts = {name: reward.components.get(name) for name in self._section.components}
        return {
            "gym/attempts": float(reward.attempts),
            "gym/latency_s": reward.latency_s,
            "gym/from_cache": float(reward.from_cache),
            **{f"gym/{name}": part for name, part in parts.items()},
        }


async def tell_sampler(origin: Origin, failure: str) -> None:
    """Leave the class of a trajectory's failure where `ValidRewardSampler` reads it.

    Nobody is told without a TransferQueue (verl's older trainer, a test), or of a trajectory
    whose ID isn't known (a custom reward function gets none).
    """
    import transfer_queue

    if not origin.uid or not await asyncio.to_thread(_attached):
        return
    await transfer_queue.async_kv_put(
        key=f"{origin.uid}_{origin.sample}",
        partition_id=GYM_PARTITION,
        tag={"failure": failure, "environment": origin.environment, "split": origin.split},
    )


def _attached() -> bool:
    """Attach this process to the run's TransferQueue; False where the run has none."""
    import ray
    import transfer_queue

    if not ray.is_initialized():
        return False
    try:
        # `init` would start a queue of its own where there is none.
        ray.get_actor("TransferQueueController", namespace="transfer_queue")
    except ValueError:
        return False
    transfer_queue.init()
    return True
