"""What became of a step's rollouts, in numbers: for the sampler's decisions and verl's loggers.

Reads TransferQueue, writes nothing there but one figure of validation. A rollout that is missing
without having said why (its worker died, a custom reward function raised) is `unexplained`.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
import transfer_queue as tq

from rlbridge_verl.scoring import ENGINE_FAILED, MASKED

_NO_REWARD = (MASKED, ENGINE_FAILED)


@dataclass(frozen=True, slots=True)
class Census:
    """Rollouts of some groups.

    Attributes:
        expected: how many there should be.
        present: how many have a trajectory with a reward.
        lone: how many of those were alone in their group and left the batch.
        failures: why others have none, by class.
    """

    expected: int = 0
    present: int = 0
    lone: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Census") -> "Census":
        return Census(
            self.expected + other.expected,
            self.present + other.present,
            self.lone + other.lone,
            self.failures + other.failures,
        )

    @property
    def masked(self) -> int:
        """Rollouts that their environment wants kept out of the loss."""
        return self.failures[MASKED]

    @property
    def missing(self) -> int:
        """Rollouts without a reward that should have one."""
        return self.expected - self.present - self.masked

    @property
    def unexplained(self) -> int:
        """Missing rollouts nobody said anything about."""
        return max(0, self.expected - self.present - self.failures.total())

    @property
    def sampleable(self) -> bool:
        """Whether anything is left to train on."""
        return self.present > self.lone

    def why(self) -> str:
        """The reasons in words, most frequent first."""
        reasons = Counter(self.failures)
        if self.unexplained:
            reasons["unexplained"] = self.unexplained
        return ", ".join(f"{count} {kind}" for kind, count in reasons.most_common()) or "no reason"

    def metrics(self) -> dict[str, float]:
        """For verl's loggers; `gym/invalid` is the sum of its classes."""
        invalid = {kind: n for kind, n in self.failures.items() if kind not in _NO_REWARD}
        return {
            "gym/expected": float(self.expected),
            "gym/valid": float(self.present),
            "gym/invalid": float(sum(invalid.values())),
            "gym/masked": float(self.masked),
            "gym/engine_failed": float(self.failures[ENGINE_FAILED]),
            "gym/unexplained": float(self.unexplained),
            "gym/lone_survivors": float(self.lone),
            **({"gym/valid_share": self.present / self.expected} if self.expected else {}),
            **{f"gym/invalid/{kind}": float(count) for kind, count in invalid.items()},
        }


def figures(batch: Any) -> dict[str, float]:
    """Means of what the rollouts of a training batch reported, and rewards by environment.

    Args:
        batch: verl's `KVBatchMeta`; of several trajectories of a rollout the last one counts.
    """
    last = _last_of_each_session(batch.keys)
    columns = ("extra_fields", "data_source", "rm_scores")
    data = tq.kv_batch_get(keys=last, partition_id=batch.partition_id, select_fields=list(columns))
    extras, sources, scores = (_listed(data.get(name, None)) for name in columns)
    values: dict[str, list[float]] = defaultdict(list)
    for extra in extras:
        for name, value in (extra.get("reward_extra_info") or {}).items():
            if isinstance(value, int | float):
                values[name].append(float(value))
    environments: dict[str, list[float]] = defaultdict(list)
    for source, score in zip(sources, scores, strict=False):
        environments[str(source)].append(float(score.sum()))
    found = {f"{name}/mean": fmean(numbers) for name, numbers in values.items()}
    if "gym/latency_s" in values:
        found["gym/latency_s/max"] = max(values["gym/latency_s"])
    if len(batch.keys) > len(last):
        found["gym/trajectories_per_rollout"] = len(batch.keys) / len(last)
    for name, numbers in environments.items():
        found[f"gym/environment/{name}/reward/mean"] = fmean(numbers)
        found[f"gym/environment/{name}/rollouts"] = float(len(numbers))
    return found


def note_validity(batch: Any, census: Census) -> None:
    """Write the share of valid rewards beside each validation reward, for verl to report.

    verl logs nothing of a validation batch but what stands in `reward_extra_info`.
    """
    if not census.expected:
        return
    share = census.present / census.expected
    data = tq.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"]
    )
    noted = []
    for extra in _listed(data.get("extra_fields")):
        info = {**(extra.get("reward_extra_info") or {}), "gym/valid_share": share}
        noted.append({"extra_fields": {**extra, "reward_extra_info": info}})
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    tq.kv_batch_put(
        keys=batch.keys,
        partition_id=batch.partition_id,
        fields=list_of_dict_to_tensordict(noted),
    )


def _last_of_each_session(keys: list[str]) -> list[str]:
    last: dict[str, tuple[int, str]] = {}
    for key in keys:
        session, _, index = key.rpartition("_")
        last[session] = max(last.get(session, (-1, "")), (int(index), key))
    return [key for _, key in last.values()]


def _listed(column: Any) -> list[Any]:
    """A column's values, however the queue packed it; none where the batch lacks it."""
    if column is None:
        return []
    if isinstance(column, torch.Tensor):
        return list(column.unbind())
    return list(column.tolist()) if hasattr(column, "tolist") else list(column)
