"""Rollouts without a row: why, and how often each was tried. Gym's `<stem>_failures.jsonl`.

One line an attempt that failed, appended and forced to disk. What succeeded later, and all but
the last attempt, is dropped when a run ends.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from rlbridge.contracts import wire
from rlbridge.contracts.reward import Fault, InvalidReward
from rlbridge.durable import sync_folder
from rlbridge.rollouts.appending import AppendFile
from rlbridge.rollouts.index import Done, Key, key_of


@dataclass(frozen=True, slots=True)
class RolloutFailure:
    """Why a rollout has no reward that could be trusted.

    Attributes:
        failure: a short name: one of `FailureClass`, or `policy_...` where the policy failed.
        fault: infrastructure may succeed later; data will fail again.
        detail: what happened, in the server's own words where it has some.
        status: the HTTP status of the last answer, if there was one.
        reported: the environment's own failure class, if it gave one.
    """

    failure: str
    fault: Fault
    detail: str
    status: int | None = None
    reported: str | None = None

    @classmethod
    def of(cls, reward: InvalidReward) -> "RolloutFailure":
        """The failure of a rollout whose reward is invalid."""
        return cls(
            reward.failure.value, reward.fault, reward.detail, reward.status, reward.reported
        )

    def fields(self, attempts: int) -> dict[str, Any]:
        """What a row in the failures file says of it; there is no reward among it."""
        told = {
            wire.FAILURE_CLASS: self.failure,
            wire.FAILURE_TERMINAL: self.fault is Fault.DATA,
            wire.FAILURE_DETAIL: self.detail,
            wire.ROLLOUT_ATTEMPTS: attempts,
        }
        if self.status is not None:
            told[wire.FAILURE_STATUS] = self.status
        if self.reported is not None:
            told[wire.FAILURE_REPORTED] = self.reported
        return told


class FailureLog:
    """The failures file of one output.

    Args:
        path: the file; made with the first failure. A torn last line is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: AppendFile | None = AppendFile(path) if path.exists() else None

    def attempts(self, done: Done) -> dict[Key, int]:
        """How often each rollout was tried that has failed and isn't done."""
        tried: dict[Key, int] = {}
        if self._file is None:
            return tried
        end = 0
        with self._path.open("rb") as lines:
            for line in lines:
                row = _row(line)
                if row is None:
                    break
                end += len(line)
                key = key_of(row)
                if key not in done:
                    tried[key] = int(row.get(wire.ROLLOUT_ATTEMPTS) or tried.get(key, 0) + 1)
        self._file.truncate(end)
        return tried

    def append(self, line: bytes) -> None:
        """Append one failure."""
        if self._file is None:
            self._file = AppendFile(self._path)
            sync_folder(self._path.parent)
        self._file.append(line)

    def sync(self) -> None:
        """Force what was appended to disk."""
        if self._file is not None:
            self._file.sync()

    def compact(self, failed: Mapping[Key, int]) -> None:
        """Keep the last line of each rollout in `failed` and no other."""
        if self._file is None:
            return
        last = self._last_lines(failed)
        if len(last) == self._lines():
            return
        draft = AppendFile(self._path.with_name(f".{self._path.name}.draft"))
        draft.truncate(0)
        with self._path.open("rb") as lines:
            at = 0
            for line in lines:
                if at in last:
                    draft.append(line)
                at += len(line)
        draft.sync()
        draft.close()
        self._file.close()
        draft.path.replace(self._path)
        sync_folder(self._path.parent)
        self._file = AppendFile(self._path)
        if not last:
            self._remove()

    def _last_lines(self, failed: Collection[Key]) -> set[int]:
        """Where the last line of each failed rollout begins."""
        places: dict[Key, int] = {}
        at = 0
        with self._path.open("rb") as lines:
            for line in lines:
                row = _row(line)
                if row is not None and (key := key_of(row)) in failed:
                    places[key] = at
                at += len(line)
        return set(places.values())

    def _lines(self) -> int:
        with self._path.open("rb") as lines:
            return sum(1 for _ in lines)

    def _remove(self) -> None:
        self.close()
        self._path.unlink()
        sync_folder(self._path.parent)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line; None for a torn one."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
