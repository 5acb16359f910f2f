"""Starts the sandbox's launcher, and tells it what the program sees and what it may use.

`sandbox_init.py` does the rest: it makes the namespaces, then becomes the program.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Final, NamedTuple

from pydantic import Field

from rlbridge.config import StrictModel

LAUNCHER: Final = Path(__file__).with_name("sandbox_init.py")
_LIBRARIES: Final = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64")
_ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    "HOME": "/work",
    "PATH": "/usr/bin:/bin",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Limits(StrictModel):
    """What one program may use."""

    cpu_s: int = Field(default=10, ge=1)
    """CPU seconds of each of its processes; more of them is a wrong answer."""
    wall_s: float = Field(default=60.0, gt=0)
    """Seconds in all; a program that still wants to run then had too busy a machine: invalid."""
    memory_mb: int = Field(default=512, ge=64)
    """Address space of each of its processes, in MiB."""
    processes: int = Field(default=8, ge=1)
    """Processes and threads at a time."""
    disk_mb: int = Field(default=32, ge=1)
    """Room for files, which lie in memory, in MiB."""
    output_kb: int = Field(default=4096, ge=1)
    """What is read of its output, in KiB; more of it is a wrong answer."""


class Launched(NamedTuple):
    """A program under way, or on its way into its sandbox.

    Attributes:
        process: the launcher, whose end takes the program with it.
        stdin: the program's, unbuffered; doesn't block.
        stdout: likewise.
        status_fd: where the launcher's lines of JSON come from; the caller closes it.
    """

    process: "subprocess.Popen[bytes]"
    stdin: IO[bytes]
    stdout: IO[bytes]
    status_fd: int


def launch(
    arguments: list[str], files: Mapping[str, str], limits: Limits, packages: Path | None
) -> Launched:
    """Start the launcher; the arguments are those of `rlbridge.evaluators.sandbox.Sandboxed`."""
    task = _task(arguments, files, limits, packages)
    task_read, task_write = os.pipe()
    status_fd, status_write = os.pipe()
    command = [_python(), "-I", "-S", "-B", str(LAUNCHER), str(task_read), str(status_write)]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(task_read, status_write),
            env={},
            bufsize=0,
            start_new_session=True,
        )
    except BaseException:
        os.close(task_write)
        os.close(status_fd)
        raise
    finally:
        os.close(task_read)
        os.close(status_write)
    with os.fdopen(task_write, "wb") as sink:
        sink.write(task)
    assert process.stdin is not None  # noqa: S101 (pipes were asked for)
    assert process.stdout is not None  # noqa: S101
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    return Launched(process, process.stdin, process.stdout, status_fd)


def _task(
    arguments: list[str], files: Mapping[str, str], limits: Limits, packages: Path | None
) -> bytes:
    readable, links = _libraries()
    environment = dict(_ENVIRONMENT)
    flags = ["-I", "-S", "-B"]
    if packages is not None:
        folder = str(packages.resolve())
        readable = (*readable, folder)
        environment["PYTHONPATH"] = folder
        flags = ["-s", "-S", "-B"]
    task = {
        "readable": readable,
        "links": links,
        "files": dict(files),
        "argv": [_python(), *flags, *arguments],
        "env": environment,
        "memory_mb": limits.memory_mb,
        "cpu_s": limits.cpu_s,
        "disk_mb": limits.disk_mb,
        "processes": limits.processes,
    }
    return json.dumps(task).encode()


@cache
def _libraries() -> tuple[tuple[str, ...], dict[str, str]]:
    """Folders to be seen, and links to be made: the interpreter and the system's libraries."""
    prefix = str(Path(sys.base_prefix).resolve())
    readable, links = [prefix], {}
    for name in _LIBRARIES:
        path = Path(name)
        if path.is_symlink():
            links[name] = str(path.readlink())
        elif path.is_dir() and not path.is_relative_to(prefix):
            readable.append(name)
    # `/usr` as a prefix holds its libraries already; outer folders are mounted first.
    return tuple(sorted(readable)), links


@cache
def _python() -> str:
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
