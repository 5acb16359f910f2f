"""Deadlines of many requests under one timer. Refuses to be later than the event loop itself.

A timer a request (asyncio's, or an HTTP library's) costs a twentieth of the request. Requests
with the same timeout fall due in the order they were sent, so one timer for the oldest will do.
"""

import asyncio


class Deadline:
    """One request's, from `Deadlines.start`; `ended` must be called whatever happens."""

    __slots__ = ("_cancelling", "_group", "_task", "due", "expired")

    def __init__(self, group: "Deadlines", task: "asyncio.Task[object]", due: float) -> None:
        self._group = group
        self._task = task
        self._cancelling = task.cancelling()
        self.due = due
        self.expired = False

    def expire(self) -> None:
        """Cancel the request where it waits."""
        self.expired = True
        self._task.cancel()

    def ended(self) -> None:
        """The request is over, one way or another."""
        self._group.live.pop(self, None)

    def is_ours(self) -> bool:
        """Whether a `CancelledError` that came is this deadline's alone, and takes it back."""
        return self.expired and self._task.uncancel() <= self._cancelling


class Deadlines:
    """All requests that have `timeout_s` seconds, on one event loop.

    Attributes:
        live: those under way, oldest first.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.live: dict[Deadline, None] = {}

    def start(self) -> Deadline:
        """Start the clock for the running task's request."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a coroutine runs in a task)
        deadline = Deadline(self, task, self._loop.time() + self._timeout_s)
        self.live[deadline] = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline.due, self._sweep)
        return deadline

    def close(self) -> None:
        """Drop the timer; nothing is under way any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        now = self._loop.time()
        due = []
        self._timer = None
        for deadline in self.live:
            if deadline.due > now:
                self._timer = self._loop.call_at(deadline.due, self._sweep)
                break
            due.append(deadline)
        for deadline in due:
            self.live.pop(deadline, None)
            deadline.expire()
