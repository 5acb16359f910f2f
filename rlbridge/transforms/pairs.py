"""Preference pairs of one prompt's rollouts, by reward, whatever the size of the group.

Pairs are never made across prompts: DPO compares two answers to the same question (Rafailov et
al. 2023, eq. 7), so "stratified" splits each prompt's own rollouts into a high and a low stratum.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlbridge.errors import ConfigError
from rlbridge.transforms.selection import Rows, mixed
from rlbridge.transforms.spool import Index


@dataclass(frozen=True, slots=True)
class Pairing:
    """How pairs are made.

    Attributes:
        strategy: `same_prompt` pairs any two rollouts of a prompt; `stratified` pairs one of at
            least `high` with one of at most `low`, each rollout at most once.
        pairs: `best` makes one pair a prompt, the best against the worst (of the strata: as many
            as there are); `all` every pair above the gap; a number so many at most, drawn by the
            seed.
        min_gap: the chosen reward exceeds the rejected one by at least so much; never 0, since
            equal rewards prefer nothing.
        high: the lower end of the high stratum.
        low: the upper end of the low stratum.
    """

    strategy: Literal["same_prompt", "stratified"] = "same_prompt"
    pairs: Literal["best", "all"] | int = "best"
    min_gap: float = 0.2
    high: float = 0.7
    low: float = 0.3

    def __post_init__(self) -> None:
        if not self.min_gap > 0:
            raise ConfigError(f"--min-gap must be above 0, got {self.min_gap}")
        if self.low >= self.high:
            raise ConfigError(
                f"--low-threshold {self.low} must be below --high-threshold {self.high}"
            )
        if isinstance(self.pairs, int) and self.pairs < 1:
            raise ConfigError(f"--pairs is best, all or a number from 1, got {self.pairs}")


@dataclass(slots=True)
class Groups:
    """Rows sorted by prompt and, in each prompt, by reward.

    Attributes:
        rows: row numbers, prompts in the order of their first row.
        begins: where each group begins in `rows`.
        gaps: float64, the largest difference of rewards in each group.
    """

    rows: Rows
    begins: Rows
    gaps: npt.NDArray[np.float64]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Rows in each group."""
        return np.diff(np.append(self.begins, len(self.rows)))


def groups_of(index: Index, rows: Rows) -> Groups:
    """Group rows, which are in ascending order, by prompt."""
    prompt, reward = index.prompt[rows], index.reward[rows]
    _, first, number = np.unique(prompt, return_index=True, return_inverse=True)
    order = np.lexsort((reward, first[number]))  # stable: equal rewards stay in order
    key = first[number][order]
    begins = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(rows) else np.empty(0, int)
    ends = np.append(begins[1:], len(rows)) - 1
    ranked = reward[order]
    gaps = ranked[ends] - ranked[begins] if len(rows) else np.empty(0)
    return Groups(rows[order], begins.astype(np.int64), gaps)


def pairs_of(index: Index, groups: Groups, how: Pairing, *, seed: int) -> Iterator[tuple[int, int]]:
    """Row numbers of the chosen and the rejected rollout, prompt by prompt."""
    sizes = groups.sizes
    able = np.flatnonzero((sizes > 1) & (groups.gaps >= how.min_gap))
    if how.strategy == "same_prompt" and how.pairs == "best":
        worst = groups.begins[able]
        best = worst + sizes[able] - 1
        yield from zip(groups.rows[best].tolist(), groups.rows[worst].tolist(), strict=True)
        return
    for number in able.tolist():
        begin = int(groups.begins[number])
        rows = groups.rows[begin : begin + int(sizes[number])]
        if how.strategy == "stratified":
            found = _strata(index, rows, how, seed)
        else:
            found = _above_gap(index, rows, how, seed)
        yield from map(tuple, found.tolist())


def _above_gap(index: Index, rows: Rows, how: Pairing, seed: int) -> Rows:
    """[n, 2] pairs above the gap; as many as wanted, in an order drawn by the seed."""
    reward = index.reward[rows]
    low, high = np.nonzero(reward[None, :] - reward[:, None] >= how.min_gap)
    pairs = np.stack([rows[high], rows[low]], axis=1)
    if how.pairs == "all":
        return pairs
    luck = mixed((pairs[:, 0] * len(index) + pairs[:, 1]).astype(np.uint64), seed)
    return pairs[np.argsort(luck, kind="stable")[: how.pairs]]


def _strata(index: Index, rows: Rows, how: Pairing, seed: int) -> Rows:
    """[n, 2] pairs of one rollout of the high stratum and one of the low, each used once."""
    reward = index.reward[rows]
    luck = mixed(rows.astype(np.uint64), seed)
    high = np.flatnonzero(reward >= how.high)
    low = np.flatnonzero(reward <= how.low)
    n = min(len(high), len(low))
    high = high[np.argsort(luck[high], kind="stable")][:n]
    low = low[np.argsort(luck[low], kind="stable")][:n]
    wide = reward[high] - reward[low] >= how.min_gap
    pairs = np.stack([rows[high[wide]], rows[low[wide]]], axis=1)
    return pairs[: how.pairs] if isinstance(how.pairs, int) else pairs
