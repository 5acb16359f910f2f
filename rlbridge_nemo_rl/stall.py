"""Ends a run whose rollouts make no progress. NeMo-RL itself would wait for ever.

Progress is a reward more in the record, or a rollout that ends.
"""

import _thread
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rlbridge.errors import RunError

_LOOK_EVERY_S = 1.0


class StalledError(RunError):
    """The rollouts of a step made no progress for longer than allowed."""


class StallWatch:
    """Watches rollouts from a thread of its own and interrupts the main thread.

    Args:
        ledger: the folder of the record of rewards.
        timeout_s: longest time without progress.
    """

    def __init__(self, ledger: Path, timeout_s: float) -> None:
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._rolling = threading.Event()
        self._ended = threading.Event()
        self._last = time.monotonic()
        self._stalled = False

    @contextlib.contextmanager
    def rollout(self) -> Iterator[None]:
        """A rollout is under way while this is open."""
        self._last = time.monotonic()
        self._rolling.set()
        try:
            yield
        finally:
            self._rolling.clear()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Watches while open.

        Raises:
            StalledError: nothing went on for `timeout_s` during a rollout.
        """
        thread = threading.Thread(target=self._watch, name="rlbridge-stall-watch", daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            if not self._stalled:
                raise
            raise StalledError(
                f"no reward was recorded for trainer.stall_timeout_s={self._timeout_s:.0f} while "
                "rollouts were under way; an engine or the environment may be dead"
            ) from None
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        size = -1
        while not self._ended.wait(min(_LOOK_EVERY_S, self._timeout_s / 4)):
            now = sum(path.stat().st_size for path in self._ledger.glob("*.jsonl"))
            if now != size or not self._rolling.is_set():
                size, self._last = now, time.monotonic()
            elif time.monotonic() - self._last > self._timeout_s:
                self._stalled = True
                _thread.interrupt_main()
                return
