"""Ends a run whose rollouts make no progress. NeMo-RL itself would wait for ever.

Progress is a reward more in the record, a rollout that ends, or a step that ends. Time counts only
while the trainer waits for rollouts: a long update is none of this module's business.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlbridge.errors import RunError

_LOOK_EVERY_S = 1.0
_GRACE_S = 20.0
_NOTHING = contextlib.nullcontext()


class StalledError(RunError):
    """The rollouts of a step made no progress for longer than allowed."""


class StallWatch:
    """Watches rollouts from a thread of its own and interrupts the main thread.

    Args:
        ledger: the folder of the record of rewards.
        timeout_s: longest wait without progress.
        release: called when that is over, before the interruption: ends what the main thread may
            be waiting for in a way no interruption reaches.
        abandon: called with the message where even then the main thread doesn't come back; must
            end the process.
    """

    def __init__(
        self,
        ledger: Path,
        timeout_s: float,
        release: Callable[[], None] = lambda: None,
        abandon: Callable[[str], None] = lambda _: os._exit(1),
    ) -> None:
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._release, self._abandon = release, abandon
        self._waits: list[Path | None] = []
        self._waited_s = 0.0
        self._ended = threading.Event()
        self._stalled = False

    @contextlib.contextmanager
    def waiting(self, begun: Path | None = None) -> Iterator[None]:
        """The trainer waits for rollouts while this is open; may be nested.

        Args:
            begun: a file without which there are no rollouts to wait for yet.
        """
        self._waits.append(begun)
        try:
            yield
        finally:
            self._waits.pop()

    @contextlib.contextmanager
    def rollout(self) -> Iterator[None]:
        """A rollout that the trainer waits for is under way while this is open."""
        with self.waiting():
            yield
        self.progressed()

    def progressed(self) -> None:
        """Something came to its end: the wait begins anew."""
        self._waited_s = 0.0

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Watches while open.

        Raises:
            StalledError: waiting led nowhere for `timeout_s`.
        """
        thread = threading.Thread(target=self._watch, name="rlbridge-stall-watch", daemon=True)
        _hear_interruptions()
        thread.start()
        try:
            yield
        except BaseException:  # an interruption, or what it or the release turned into
            if not self._stalled:
                raise
        finally:
            self._ended.set()
            with contextlib.suppress(KeyboardInterrupt) if self._stalled else _NOTHING:
                thread.join()  # where an interruption arrives that came too late
        if self._stalled:
            raise StalledError(self._message)

    @property
    def _message(self) -> str:
        return (
            f"no reward was recorded for trainer.stall_timeout_s={self._timeout_s:g} while "
            "rollouts were under way; an engine, an environment or the reward server may hang"
        )

    def _watch(self) -> None:
        size, last = -1, time.monotonic()
        while not self._ended.wait(min(_LOOK_EVERY_S, self._timeout_s / 4)):
            now, grown = time.monotonic(), self._size()
            if any(begun is None or begun.exists() for begun in self._waits):
                self._waited_s += now - last
            if grown != size:
                self.progressed()
            size, last = grown, now
            if self._waited_s > self._timeout_s:
                self._stop()
                return

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self._ledger.glob("*.jsonl"))

    def _stop(self) -> None:
        self._stalled = True
        try:
            self._release()
        finally:
            if not self._ended.is_set():
                # A real signal: it wakes an event loop that waits for the network, too.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if not self._ended.wait(_GRACE_S):
            self._abandon(self._message)


def _hear_interruptions() -> None:
    """Let SIGINT raise where a shell that put the process into the background has it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
