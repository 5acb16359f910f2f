"""Who is at work in a capture folder: locks that end with the process, however it ends.

Every gateway holds `GATEWAYS` while it lives, shared with others; `captures prune`, and a gateway
that deletes captures of its own, hold it alone where they can. `PRUNING` is held by whoever
deletes. Refuses nothing: a file system that can't lock is an `OSError` for the caller.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

GATEWAYS: Final = ".gateways.lock"
PRUNING: Final = ".pruning.lock"
_POLL_S: Final = 0.1


def try_lock(path: Path, *, shared: bool = False, wait_s: float = 0.0) -> int | None:
    """Lock a file, made if it isn't there.

    Args:
        path: its content is left alone.
        shared: with others who share it.
        wait_s: how long to try.

    Returns:
        A descriptor that holds the lock until it is closed; None if somebody else has it still.

    Raises:
        OSError: the file can't be opened, or its file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + wait_s
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(file)
                return None
        except OSError:
            os.close(file)
            raise
        else:
            return file
        time.sleep(_POLL_S)


def is_locked(path: Path) -> bool:
    """Whether somebody holds a lock on a file, shared or not; a file that isn't there is free.

    Raises:
        OSError: the file can't be opened, or its file system has no locks.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
