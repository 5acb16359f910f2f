"""Whether a server is up. Down after failures in a row; one probe at a time finds out again.

A call that meets a server which is down waits for the probe, as long as the outage is younger
than `outage_patience_s`; later calls fail at once, so a dead server costs its patience once and
not once a call. Every wait has an end.
"""

import asyncio
from enum import StrEnum
from time import monotonic
from typing import Final

from rlbridge.config import GymConfig

PROBE_MAX_S: Final = 2.0


class State(StrEnum):
    """Closed lets calls through, open lets none, half open lets one through and waits."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class ServerDownError(Exception):
    """The server is down and the caller's patience is over."""


class Breaker:
    """Circuit breaker for one server and one event loop.

    Attributes:
        state: see `State`.
        failing_since: monotonic time of the first failure of the current streak, or None.
        opened: how often it opened.
    """

    __slots__ = (
        "_failures",
        "_max_failures",
        "_patience_s",
        "_probe_at",
        "_probe_initial_s",
        "_probe_limit_s",
        "_probe_s",
        "_waiters",
        "failing_since",
        "opened",
        "state",
    )

    def __init__(self, config: GymConfig) -> None:
        self._max_failures = config.breaker_failures
        self._probe_initial_s = self._probe_s = config.breaker_probe_s
        self._probe_limit_s = config.connect_timeout_s
        self._patience_s = config.outage_patience_s
        self._failures = 0
        self._probe_at = 0.0
        self._waiters: dict[asyncio.Future[None], None] = {}  # an ordered set
        self.failing_since: float | None = None
        self.state = State.CLOSED
        self.opened = 0

    def patient(self, now: float) -> bool:
        """Whether the current outage, if any, is young enough to wait for its end."""
        return self.failing_since is None or now - self.failing_since < self._patience_s

    def probe_due(self, now: float) -> bool:
        """Whether the next call would be the probe."""
        return self.state is State.OPEN and now >= self._probe_at

    async def admit(self) -> bool:
        """Wait until a call may go out; True means that it is the probe.

        Raises:
            ServerDownError: the server stays down for longer than the caller should wait.
        """
        give_up_at = monotonic() + self._probe_limit_s
        while self.state is not State.CLOSED:
            now = monotonic()
            if self.probe_due(now):
                self.state = State.HALF_OPEN
                return True
            if self.failing_since is not None:
                give_up_at = max(give_up_at, self.failing_since + self._patience_s)
            until = self._probe_at if self.state is State.OPEN else give_up_at
            if not self.patient(now) and (self.state is State.OPEN or now >= give_up_at):
                raise ServerDownError
            await self._change(max(until - now, 0.0))
        return False

    def succeeded(self) -> None:
        """An answer came: the server is up."""
        if self.failing_since is None:
            return
        self._failures = 0
        self.failing_since = None
        self._probe_s = self._probe_initial_s
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._wake()

    def failed(self, now: float, *, probe: bool) -> None:
        """No answer came."""
        self._failures += 1
        if self.failing_since is None:
            self.failing_since = now
        if probe:
            self._probe_s = min(self._probe_s * 2, PROBE_MAX_S)
            self._open(now)
        elif self.state is State.CLOSED and self._failures >= self._max_failures:
            self.opened += 1
            self._open(now)

    def probe_dropped(self, now: float) -> None:
        """The probe was cancelled and says nothing: let the next call be it."""
        if self.state is State.HALF_OPEN:
            self.state = State.OPEN
            self._probe_at = now
            self._wake()

    def _open(self, now: float) -> None:
        self.state = State.OPEN
        self._probe_at = now + self._probe_s
        self._wake()

    async def _change(self, timeout_s: float) -> None:
        """Wait for the state to change, or for `timeout_s` to pass."""
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[changed] = None
        try:
            async with asyncio.timeout(timeout_s):
                await changed
        except TimeoutError:
            pass
        finally:
            self._waiters.pop(changed, None)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
