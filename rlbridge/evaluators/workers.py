"""Processes that grade under limits, for libraries that may hang, crash or eat memory.

A worker loads one function and calls it for one line of JSON after the other. One that takes too
long or dies is replaced; what it was asked has no verdict then, and the reason says whose fault
that is. Threads wait for workers, so any event loop in any thread can use them. Refuses nothing;
forgets its workers in a forked child, which gets its own.
"""

import asyncio
import json
import math
import os
import queue
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import psutil
from pydantic import Field

from rlbridge.config import StrictModel
from rlbridge.contracts.reward import FailureClass
from rlbridge.evaluators.local import UngradableError

START_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.2  # between looks at a busy worker's CPU time


class WorkerLimits(StrictModel):
    """What grading one answer may cost."""

    cpu_s: float = Field(default=5.0, gt=0)
    """CPU seconds for one answer; a costlier one has no verdict, and that is its own fault."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for one answer on a busy machine; no verdict either, but asking again may help."""
    memory_mb: int = Field(default=1024, ge=256)
    """Address space of a worker, in MiB."""
    workers: int = Field(default=2, ge=1)
    """Processes that grade at the same time."""


class Workers:
    """A pool of processes that run one function, started when first asked.

    Args:
        function: `module:function`; called with keywords, returns JSON.
        limits: of one call.
    """

    def __init__(self, function: str, limits: WorkerLimits) -> None:
        self._function = function
        self._limits = limits
        self._pid = 0
        self._threads: ThreadPoolExecutor | None = None
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()

    async def call(self, **arguments: Any) -> Any:
        """What the function returns for `arguments`, plain data.

        Raises:
            UngradableError: it took too long, needed too much, or crashed.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._open(), self._call, arguments)

    async def aclose(self) -> None:
        """End all workers; those that are busy when their answer is done."""
        threads, self._threads = self._threads, None
        if threads is None or self._pid != os.getpid():
            return
        await asyncio.to_thread(threads.shutdown, wait=True)
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.end()

    def _open(self) -> ThreadPoolExecutor:
        if self._threads is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._idle = queue.SimpleQueue()
            for _ in range(self._limits.workers):
                self._idle.put(None)
            self._threads = ThreadPoolExecutor(self._limits.workers, "rlbridge-grade")
        return self._threads

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        worker = self._idle.get()
        try:
            if worker is None:
                worker = _Worker(self._function, self._limits)
            return worker.ask(arguments)
        except _WorkerGoneError as error:
            worker = None
            raise UngradableError(str(error), error.failure) from error
        finally:
            self._idle.put(worker)


class _WorkerGoneError(Exception):
    def __init__(self, detail: str, failure: FailureClass) -> None:
        super().__init__(detail)
        self.failure = failure


class _Worker:
    """One process and its pipes."""

    def __init__(self, function: str, limits: WorkerLimits) -> None:
        command = [sys.executable, "-m", "rlbridge.evaluators.worker", function]
        self._process = subprocess.Popen(
            [*command, str(limits.memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        # A pool that nobody closed must not leave processes behind, nor a warning.
        self._finalizer = weakref.finalize(self, _end, self._process)
        self._limits = limits
        self._buffer = b""
        self._line(START_TIMEOUT_S, math.inf)  # "ready", after its slow imports

    def end(self) -> None:
        self._finalizer()

    def ask(self, arguments: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None  # noqa: S101 (pipes were asked for)
        try:
            # It reads all of a line before it works, so this can't wait for ever.
            self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        except BrokenPipeError:
            raise self._crashed() from None
        answer = json.loads(self._line(self._limits.timeout_s, self._limits.cpu_s))
        if "raised" in answer:
            kind = FailureClass.BAD_ROW if answer["known"] else FailureClass.SERVER_ERROR
            raise UngradableError(answer["raised"], kind)
        return answer["value"]

    def _line(self, timeout_s: float, cpu_s: float) -> bytes:
        assert self._process.stdout is not None  # noqa: S101
        deadline, used_s = time.monotonic() + timeout_s, self._cpu_used()
        while b"\n" not in self._buffer:
            if select.select([self._process.stdout], [], [], _POLL_S)[0]:
                chunk = self._process.stdout.read(65536)
                if not chunk:
                    raise self._crashed()
                self._buffer += chunk
            elif self._cpu_used() - used_s > cpu_s:
                self.end()
                detail = f"the answer takes more than {cpu_s:g} s of CPU time to grade"
                raise _WorkerGoneError(detail, FailureClass.BAD_ROW)
            elif time.monotonic() > deadline:
                self.end()
                detail = f"no verdict within {timeout_s:g} s: a busy machine"
                raise _WorkerGoneError(detail, FailureClass.TIMEOUT)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _crashed(self) -> _WorkerGoneError:
        self.end()
        status = self._process.returncode
        detail = f"the grading process ended with status {status}"
        return _WorkerGoneError(detail, FailureClass.SERVER_ERROR)

    def _cpu_used(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:  # gone; reading from it says so
            return 0.0
        return float(times.user + times.system)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.kill()
    process.wait()
