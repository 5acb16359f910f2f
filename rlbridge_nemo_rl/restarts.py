"""What an environment's actor knows again after its process died: its step, and what it judged.

Ray asks a restarted actor again whatever it hadn't answered, samples of which may have been judged
already. They are told apart by the call's task ID, which Ray keeps over retries, and a sample is
judged and recorded once. Refuses to guess: a sample that isn't in the record is asked for again.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward, ValidReward
from rlbridge.ledger import LedgerReader

_STEP = "step"


def this_call() -> str:
    """What tells the actor's present call from all others, retries of itself excepted."""
    import ray

    return str(ray.get_runtime_context().get_task_id())


def keep_step(folder: Path, step: int) -> None:
    """Write the step down for whoever comes after a crash."""
    path = folder / _STEP
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(str(step))
    unfinished.replace(path)


def remembered(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """The step this actor was in when it died, and its lines of the record since that began.

    Returns:
        No lines in an actor that was never restarted.
    """
    import ray

    path = folder / _STEP
    if not path.exists():
        return 1, []
    step, actor = int(path.read_text()), str(ray.get_runtime_context().get_actor_id())
    lines = (line for line in LedgerReader(folder).poll() if line["step"] == step)
    # A task's ID ends in its actor's, which a restart keeps; others may write to this folder.
    return step, [line for line in lines if actor in line.get("sample_id", "")]


def reward_of(line: Mapping[str, Any]) -> Reward:
    """The reward that a line of the record is about."""
    if line["valid"]:
        return ValidReward(
            line["reward"], mask_sample=line.get("mask_sample", False), attempts=line["attempts"]
        )
    return InvalidReward(FailureClass(line["failure"]), line["detail"], attempts=line["attempts"])
