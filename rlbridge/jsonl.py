"""JSON lines that grow while they are read. Whole lines only: one being written is left alone."""

from pathlib import Path
from typing import Any

import orjson


class Follower:
    """Reads what was appended to a file since the last look.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def poll(self) -> list[dict[str, Any]]:
        """The objects of the whole lines appended since the last call, oldest first."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [orjson.loads(line) for line in whole.splitlines() if line]


def append(path: Path, line: dict[str, Any]) -> None:
    """Append one object as a line, in one write."""
    with path.open("ab", buffering=0) as file:
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
