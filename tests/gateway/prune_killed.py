"""Prunes copies of a capture folder, each killed at another step: `prune_killed.py FOLDER`.

A step is a file that is opened for writing, moved or deleted. Copies lie beside the folder as
`killed-1`, `killed-2`, ...; the last was not killed.
"""

import itertools
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rlbridge.gateway.pruning import prune


def die_at(step: int) -> None:
    steps = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in {"os.rename", "os.remove"}) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(folder: Path) -> None:
    for step in itertools.count(1):
        copy = folder.parent / f"killed-{step}"
        shutil.copytree(folder, copy)
        child = os.fork()
        if child == 0:
            die_at(step)
            prune(copy, time.time() + 1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))


main(Path(sys.argv[1]))
