"""Processes a run starts, and the promise that none of them outlives it.

The launcher becomes the reaper of its descendants (Linux), so that a grandchild whose parent died
comes back to it and is ended too. Everything is ended by pid.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_LAUNCHER = "RLBRIDGE_LAUNCHER_PID"
TERM_GRACE_S = 10.0


def adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans; a no-op where that can't be had."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(argv: list[str], *, log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that a terminal's Ctrl-C reaches only us.

    Args:
        argv: the command.
        log: gets its stdout and stderr, appended.
        env: added to our environment.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env, _LAUNCHER: str(os.getpid())},
            start_new_session=True,
        )


def end_with_launcher() -> None:
    """In a started process: end it and all it started once the launcher is gone, even by kill -9.

    Does nothing in a process that no launcher started.
    """
    launcher = int(os.environ.get(_LAUNCHER, "0"))
    if os.getppid() != launcher:
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        adopt_orphans()
        end(_descendants())
        os._exit(1)

    threading.Thread(target=watch, name="rlbridge-launcher-watch", daemon=True).start()


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """End every descendant of this process on the way out, whatever the way."""
    before = {process.pid for process in _descendants()}
    try:
        yield
    finally:
        end([process for process in _descendants() if process.pid not in before])


def end(processes: list[psutil.Process]) -> None:
    """SIGTERM, some seconds of grace, then SIGKILL; returns when they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=TERM_GRACE_S)
    late = [process for process in _descendants() if process.pid not in {p.pid for p in alive}]
    known = {process.pid for process in processes}
    for process in [*alive, *(p for p in late if p.ppid() in known)]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=TERM_GRACE_S)


def _descendants() -> list[psutil.Process]:
    try:
        return psutil.Process().children(recursive=True)
    except psutil.Error:
        return []


class ComponentWatch:
    """Notices when a process that must live as long as the run is gone, and adds up memory.

    Args:
        root: pid of the process tree's root.
        names: a process whose title contains one of these is a component.
    """

    def __init__(self, root: int, names: tuple[str, ...]) -> None:
        self._root = root
        self._names = names
        self._seen: dict[int, str] = {}
        self.peak_mb = 0.0
        """Most memory the tree and this process held at once, in MiB; pages shared by several
        processes are counted once (PSS)."""

    def poll(self) -> list[str]:
        """Titles of the components that were seen earlier and are gone now."""
        try:
            root = psutil.Process(self._root)
            tree = [psutil.Process(), root, *root.children(recursive=True)]
        except psutil.Error:
            return []
        alive = {}
        total = 0
        for process in tree:
            with contextlib.suppress(psutil.Error):
                total += _memory(process)
                if process.status() != psutil.STATUS_ZOMBIE:
                    # Process titles are padded to the length of the command they replace.
                    alive[process.pid] = " ".join(" ".join(process.cmdline()).split())
        self.peak_mb = max(self.peak_mb, total / 2**20)
        gone = [title for pid, title in self._seen.items() if pid not in alive]
        self._seen = {
            pid: title
            for pid, title in alive.items()
            if any(name in title for name in self._names) or pid in self._seen
        }
        return gone


def _memory(process: psutil.Process) -> int:
    info = process.memory_full_info()
    return int(getattr(info, "pss", 0) or info.rss)


def stop_signal_raises() -> None:
    """Turn SIGTERM into KeyboardInterrupt, so that both ways to stop a run take one path."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
