"""Which rows are kept, and in which file: thresholds, duplicates, rows a prompt, the split.

All on columns, all the same in every run with the same seed. Refuses to put one prompt into both
training and validation: the split looks at the prompt alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rlbridge.errors import ConfigError
from rlbridge.transforms.spool import Index

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """What to keep.

    Attributes:
        min_reward: rows below it are left out; None keeps all.
        max_reward: rows above it are left out; None keeps all.
        dedupe: leave out rows whose prompt and completion an earlier row had.
        max_per_prompt: so many rows of one prompt at most; 0 keeps all.
        keep: which of a prompt's rows: any (`random`, by the seed) or those of highest reward.
        validation: share of the prompts that go to the validation file, 0 to 1.
        seed: of every random choice.
    """

    min_reward: float | None = None
    max_reward: float | None = None
    dedupe: bool = True
    max_per_prompt: int = 0
    keep: Literal["random", "best"] = "random"
    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"--validation is a share from 0 to below 1, got {self.validation}")
        if self.max_per_prompt < 0:
            raise ConfigError("--max-per-prompt can't be negative; 0 keeps all")

    def wants(self, reward: float) -> bool:
        """Whether the thresholds keep a reward."""
        return (self.min_reward is None or reward >= self.min_reward) and (
            self.max_reward is None or reward <= self.max_reward
        )


@dataclass(slots=True)
class Chosen:
    """Row numbers, ascending, and what was left out.

    Attributes:
        train: of the training file.
        validation: of the validation file.
        duplicates: rows left out as duplicates.
        over_limit: rows left out since their prompt had enough.
    """

    train: Rows
    validation: Rows
    duplicates: int = 0
    over_limit: int = 0


def choose(index: Index, wanted: Selection) -> Chosen:
    """Apply everything but the thresholds, which were applied when the rows were read."""
    rows = np.arange(len(index), dtype=np.int64)
    if wanted.dedupe and len(rows):
        rows = np.sort(np.unique(index.content, return_index=True)[1])
    duplicates = len(index) - len(rows)
    if wanted.max_per_prompt and len(rows):
        rows = _limited(index, rows, wanted)
    held_out = validates(index.prompt[rows], wanted)
    over = len(index) - duplicates - len(rows)
    return Chosen(rows[~held_out], rows[held_out], duplicates, over)


def validates(prompts: npt.NDArray[np.uint64], wanted: Selection) -> npt.NDArray[np.bool_]:
    """Mask, bool [n]: prompts that belong to the validation file. It depends on nothing else."""
    if not wanted.validation:
        return np.zeros(len(prompts), dtype=np.bool_)
    limit = np.uint64(min(wanted.validation * 2.0**64, 2.0**64 - 2049))
    return mixed(prompts, wanted.seed) < limit


def mixed(values: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Hashes mixed with a seed: SplitMix64's finalizer (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _limited(index: Index, rows: Rows, wanted: Selection) -> Rows:
    """The first `max_per_prompt` rows of each prompt in the order that `keep` says.

    Not in the order of the file: collectors write what ends first first, and that is what is
    shortest.
    """
    prompt, luck = index.prompt[rows], mixed(rows.astype(np.uint64), wanted.seed)
    if wanted.keep == "best":
        order = np.lexsort((luck, -index.reward[rows], prompt))
    else:
        order = np.lexsort((luck, prompt))
    grouped = prompt[order]
    fresh = np.append(True, grouped[1:] != grouped[:-1])
    begins = np.flatnonzero(fresh)
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    return np.sort(rows[order[rank < wanted.max_per_prompt]])
