"""An append-only record of every reward a run asked for. Refuses nothing, loses nothing.

Each process that verifies appends JSON lines to a file of its own in one folder: one `write` of
one line, so that lines never mix and a crash loses at most the line being written. Anybody may
read while it grows. Bodies are never written, only outcomes.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from rlbridge.contracts.reward import Reward, ValidReward
from rlbridge.jsonl import Follower


class RewardLedger:
    """The writing end, one a process.

    Args:
        folder: where the files go; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rewards-{os.uname().nodename}-{os.getpid()}.jsonl"
        self._file: BinaryIO = path.open("ab", buffering=0)

    def record(
        self,
        reward: Reward,
        *,
        step: int,
        row: int,
        uid: str,
        sample: int,
        split: str = "train",
        sample_id: str | None = None,
    ) -> None:
        """Append one outcome.

        Args:
            reward: what came back, valid or not.
            step: the training step that asked.
            row: the row's index in its dataset.
            uid: the prompt's ID in this step; a group shares it.
            sample: which response of the group.
            split: "train" or "validation".
            sample_id: what the asking process knows this sample by after a restart.
        """
        line: dict[str, Any] = {
            "step": step,
            "row": row,
            "uid": uid,
            "sample": sample,
            "split": split,
            "attempts": reward.attempts,
            "latency_s": round(reward.latency_s, 6),
            "shared": reward.from_cache,
            "valid": reward.valid,
        }
        if isinstance(reward, ValidReward):
            line["reward"] = reward.value
            if reward.mask_sample:
                line["mask_sample"] = True
        else:
            line |= {
                "failure": reward.failure.value,
                "fault": reward.fault.value,
                "detail": reward.detail,
            }
        if sample_id is not None:
            line["sample_id"] = sample_id
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Close the file; the ledger can't be written any more."""
        self._file.close()


@dataclass(slots=True)
class LedgerTotals:
    """Sums over the lines read so far."""

    attempts: int = 0
    """Requests sent to /verify."""
    shared: int = 0
    """Rewards taken from an equal response's answer instead of a request of their own."""
    valid: int = 0
    invalid: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Invalid rewards by failure class."""
    last_invalid: dict[str, Any] | None = None
    """The last invalid outcome, for messages."""


class LedgerReader:
    """The reading end: follows all files of a folder as they grow.

    Args:
        folder: the folder the writers append to; may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, Follower] = {}
        self.totals = LedgerTotals()

    def poll(self) -> list[dict[str, Any]]:
        """Read what was appended since the last call and add it to `totals`."""
        lines: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("rewards-*.jsonl")):
            lines += self._files.setdefault(path, Follower(path)).poll()
        for line in lines:
            self._add(line)
        return lines

    def _add(self, line: dict[str, Any]) -> None:
        totals = self.totals
        totals.attempts += line["attempts"]
        totals.shared += line["shared"]
        if line["valid"]:
            totals.valid += 1
        else:
            totals.invalid += 1
            totals.failures[line["failure"]] += 1
            totals.last_invalid = line
