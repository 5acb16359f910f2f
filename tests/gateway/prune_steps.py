"""Prunes copies of a capture folder, something happening at another step of each.

`prune_steps.py killed FOLDER`: the pruning is killed at that step. Copies lie beside the folder as
`killed-1`, `killed-2`, ...; the last was not killed. `prune_steps.py read FOLDER`: all of a pruning
happens at that step of a reading; fails if the reading finds a session by half.

A step is a file that is opened, moved or deleted, or a folder that is listed.
"""

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.config import CaptureConfig
from rlbridge.gateway.pruning import prune

HALF, PRUNED = 10, 11


def at_step(step: int, do: Callable[[], object]) -> None:
    steps = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"open", "os.scandir", "os.rename", "os.remove"} and next(steps) == step:
            do()

    sys.addaudithook(hook)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def found(folder: Path) -> dict[str, Any]:
    """The sessions of a folder, those without records that are deleted meanwhile."""
    log = CaptureLog(folder, CaptureConfig(folder=folder), read_only=True)
    log.recover()
    sessions = {}
    for name in log.sessions():
        try:
            sessions[name] = log.records(name)
        except FileNotFoundError:
            continue
    return sessions


def killed(copy: Path, step: int) -> bool:
    """Whether a pruning was killed at this step; else it was over before."""
    child = os.fork()
    if child == 0:
        at_step(step, die)
        prune(copy, time.time() + 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def read(copy: Path, step: int) -> bool:
    """Whether a reading got to this step."""
    before = found(copy)
    child = os.fork()
    if child == 0:
        pruned = []
        at_step(step, lambda: pruned.append(prune(copy, time.time() + 1)))
        whole = all(before[name] == records for name, records in found(copy).items())
        os._exit(HALF if not whole else PRUNED if pruned else 0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, PRUNED}, f"pruned at step {step}, a session was read by half"
    return code == PRUNED


def main(what: str, folder: Path) -> None:
    act = {"killed": killed, "read": read}[what]
    for step in itertools.count(1):
        copy = folder.parent / f"{what}-{step}"
        shutil.copytree(folder, copy)
        if not act(copy, step):
            return


main(sys.argv[1], Path(sys.argv[2]))
