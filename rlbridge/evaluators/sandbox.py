"""Runs a stranger's Python where it can do no harm, and says how that ended.

New namespaces (user, mounts, processes, network, IPC) and resource limits, by a launcher of our
own (`sandbox_init.py`) that needs no privilege and no package. Refuses to run anything where
these can't be had: `require` says so before the first rollout, and there is no other way to run.

The program sees the interpreter's standard library, an empty folder in memory, and two pipes.
It shares the machine's kernel: see docs/evaluators.md for what that means.
"""

import enum
import json
import os
import selectors
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import psutil

from rlbridge.errors import ConfigError
from rlbridge.evaluators.launcher import LAUNCHER, Limits, launch

_STALL_SAMPLES: Final = 5
_END_TIMEOUT_S: Final = 5.0


class End(enum.StrEnum):
    """How a program ended."""

    EXITED = "exited"
    CRASHED = "ended with an error"
    CPU = "used all of its CPU time"
    STALLED = "waited until its time was over"
    OUTPUT = "wrote too much"
    OVERLOADED = "had no CPU to use within its time"
    """Not the program's fault."""
    BROKEN = "the sandbox failed"
    """Not the program's fault."""


class Sandboxed:
    """A program in a sandbox of its own; use it with `with`, which ends it in any case.

    Blocks the calling thread, for no longer than `limits.wall_s` and a few seconds.

    Args:
        arguments: what follows the interpreter's own options: a file's name, say.
        files: texts to lie in its working folder.
        limits: what it may use.
        packages: a folder it may import from; read-only.
    """

    def __init__(
        self,
        arguments: list[str],
        files: Mapping[str, str],
        limits: Limits,
        packages: Path | None = None,
    ) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.wall_s
        self._read = 0
        self._buffer = bytearray()
        self._status = b""
        self.end: End | None = None
        self.why = ""
        self._process, self._stdin, self._stdout, self._status_fd = launch(
            arguments, files, limits, packages
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._kill()
        self._stdin.close()
        self._stdout.close()
        self._process.wait()
        os.close(self._status_fd)

    def _kill(self) -> None:
        """Kill it and wait for process 1 of the namespace, which dies with it, after the rest."""
        found = (_watch(child) for child in _children(self._process.pid, recursive=False))
        watches = [watch for watch in found if watch is not None]
        self._process.kill()
        deadline = time.monotonic() + _END_TIMEOUT_S
        for watch in watches:
            with selectors.DefaultSelector() as selector:
                selector.register(watch, selectors.EVENT_READ)
                selector.select(max(deadline - time.monotonic(), 0.0))
            os.close(watch)

    def run(self, data: bytes) -> bytes:
        """Give it `data` as its whole input; all of its output. `end` says how it ended."""
        self._exchange(data, close=True, line=False)
        return bytes(self._buffer)

    def ask(self, line: bytes | None) -> bytes | None:
        """Send a line, if any, and read one; None when it ended instead, and `end` says how."""
        self._exchange(b"" if line is None else line + b"\n", close=False, line=True)
        answer, found, rest = self._buffer.partition(b"\n")
        if not found:
            return None
        self._buffer = bytearray(rest)
        return bytes(answer)

    def _exchange(self, data: bytes, *, close: bool, line: bool) -> None:
        if self.end is not None:
            return
        view = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            if view or close:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            while view or not (line and b"\n" in self._buffer):
                left_s = self._deadline - time.monotonic()
                if left_s <= 0:
                    self.end = self._why_late()
                    return
                for key, _ in selector.select(left_s):
                    if key.fileobj is self._stdin:
                        view = self._write(view)
                        if not view:
                            selector.unregister(self._stdin)
                            if close:
                                self._stdin.close()
                    elif not self._take():
                        return

    def _write(self, view: memoryview) -> memoryview:
        try:
            return view[os.write(self._stdin.fileno(), view[:65536]) :] if view else view
        except BrokenPipeError:  # it doesn't read its input
            return view[:0]

    def _take(self) -> bool:
        """Read some output; False once there will be no more that counts."""
        chunk = os.read(self._stdout.fileno(), 65536)
        self._buffer += chunk
        self._read += len(chunk)
        if self._read > self._limits.output_kb << 10:
            self.end = End.OUTPUT
        elif not chunk:
            self.end = self._how_it_ended()
        return self.end is None

    def _how_it_ended(self) -> End:
        """Its output is at an end; wait for its own end, which may be later."""
        os.set_blocking(self._status_fd, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._status_fd, selectors.EVENT_READ)
            while selector.select(max(self._deadline - time.monotonic(), 0.0)):
                chunk = os.read(self._status_fd, 4096)
                if not chunk:
                    return self._verdict()
                self._status += chunk
        return self._why_late()

    def _verdict(self) -> End:
        told: dict[str, Any] = {}
        for line in self._status.splitlines():
            told.update(json.loads(line))
        if "exit" not in told:
            self.why = str(told.get("error", "the launcher ended without a word"))
            return End.BROKEN
        if told["exit"] == 0:
            return End.EXITED
        if told["cpu_s"] >= self._limits.cpu_s:
            return End.CPU
        self.why = f"status {told['exit']}"
        return End.CRASHED

    def _why_late(self) -> End:
        """Did it want to run when its time was over? Then the machine was too busy for it."""
        for _ in range(_STALL_SAMPLES):
            if any(_runs(child) for child in _children(self._process.pid, recursive=True)):
                return End.OVERLOADED
            time.sleep(0.02)
        return End.STALLED


@cache
def require() -> None:
    """Make a sandbox and try its walls.

    Raises:
        ConfigError: it can't be had here; the message says why.
    """
    if sys.platform != "linux":
        raise ConfigError(f"the sandbox needs Linux, this is {sys.platform}; serve `code` there")
    probe = (
        "import os, socket\n"
        "try: socket.create_connection(('127.0.0.1', 9), 1)\n"
        "except ConnectionRefusedError: print('network')\n"
        "except OSError: pass\n"
        f"if os.path.exists({str(LAUNCHER)!r}): print('files')\n"
        "if os.getppid() != 1: print('processes')\n"
        "print('ok')\n"
    )
    limits = Limits(wall_s=30.0)
    with Sandboxed(["probe.py"], {"probe.py": probe}, limits) as program:
        output = program.run(b"")
    if program.end is not End.EXITED or output != b"ok\n":
        found = output.decode("utf-8", "replace").split()
        why = f"reachable inside: {', '.join(found)}" if found else f"{program.end}: {program.why}"
        raise ConfigError(
            f"no sandbox for strangers' code here ({why}); code is never run without one. It "
            "needs Linux 5.12 with unprivileged user namespaces (sysctl "
            "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, "
            "user.max_user_namespaces; in Docker: --security-opt seccomp=unconfined)"
        )


def _watch(process: psutil.Process) -> int | None:
    """A file descriptor that is readable once `process` has ended; None when it has."""
    try:
        return os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None


def _children(pid: int, *, recursive: bool) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.Error:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    except psutil.Error:
        return False
