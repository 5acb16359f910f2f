"""A file that only grows: an append is whole or it never was. Refuses to go on over a torn end.

A full disk leaves the file as it was before the append and raises an error that says what to do.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlbridge.durable import sync_folder
from rlbridge.errors import RunError

# A full disk, a full quota, a file as large as the file system or `ulimit -f` allows.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class AppendFile:
    """A file opened for appending, made if it isn't there.

    Attributes:
        path: the file.
        size: its bytes; what lies behind them is a torn append and is cut off by the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> int:
        """Append `data`, all of it or nothing.

        Returns:
            The offset of its first byte.

        Raises:
            RunError: the disk is full; the file is as it was.
        """
        start = at = self.size
        try:
            with full_disk_explained(self.path):
                view = memoryview(data)
                while view:
                    written = os.pwrite(self._fd, view, at)
                    at += written
                    view = view[written:]
        except BaseException:
            os.ftruncate(self._fd, start)
            raise
        self.size = at
        return start

    def sync(self) -> None:
        """Wait until everything appended is on the disk itself.

        Raises:
            RunError: the disk is full after all.
        """
        with full_disk_explained(self.path):
            os.fsync(self._fd)

    def truncate(self, size: int) -> None:
        """Cut the file off behind `size` bytes."""
        os.ftruncate(self._fd, size)
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the file; fewer where it ends."""
        return os.pread(self._fd, length, start)

    def close(self) -> None:
        """Close the file; nothing can be appended afterwards."""
        os.close(self._fd)


@contextmanager
def full_disk_explained(path: Path) -> Iterator[None]:
    """Turn a full disk into an error that says so and what to do.

    Raises:
        RunError: the disk or the quota is full, or the file may not grow.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free_mb = shutil.disk_usage(path.parent).free / 1e6
        raise RunError(
            f"can't write {path}: {error.strerror} ({free_mb:.0f} MB are free on its disk). Every "
            "row finished so far is kept whole. Free some space and run the same command again: "
            "it goes on where it stopped"
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and onto the disk itself.

    Raises:
        RunError: the disk is full; an older file is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with full_disk_explained(path):
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)
