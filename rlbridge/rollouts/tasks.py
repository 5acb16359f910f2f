"""What is to be collected: every input row, as often as asked. Refuses rows without a prompt.

Rows of raw fields get theirs by a prompt config, as they do on their way to a trainer. The input is
read once before anything is asked of a server, so that a bad line at its end costs seconds and not
a night, and once more, row by row, while rollouts are collected.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.prompts import PromptConfig
from rlbridge.rollouts.index import Key
from rlbridge.rows import refuse_rounded
from rlbridge.transforms.reading import Line, Reader

_PIECE: Final = 1 << 20


class Task(NamedTuple):
    """One rollout to be collected.

    Attributes:
        key: the row's number in the input from 0, and which of its repeats.
        row: the input row; shared by its repeats and left unchanged.
    """

    key: Key
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Input:
    """An input file that was read to its end.

    Attributes:
        path: the file.
        rows: how many rows are used.
        sha256: of the file as it lies on disk.
        prompt: makes the rows' prompts; None if they have them.
    """

    path: Path
    rows: int
    sha256: str
    prompt: PromptConfig | None = None

    @classmethod
    def survey(
        cls, path: Path, limit: int | None = None, prompt: PromptConfig | None = None
    ) -> "Input":
        """Read a file through.

        Args:
            path: JSON lines, packed or not, or Parquet.
            limit: use so many rows at most, from the top.
            prompt: makes the rows' prompts; None if they have them.

        Raises:
            ConfigError: it can't be read, holds no rows, one of them is no row with a prompt, or
                has one already where `prompt` is to make it, or a number that would be rounded.
        """
        rows = sum(1 for _ in _rows(path, limit, prompt))
        if not rows:
            raise ConfigError(f"{path} holds no rows")
        return cls(path, rows, file_sha256(path), prompt)

    def tasks(self, repeats: int, wanted: Callable[[Key], bool]) -> Generator[Task, None, None]:
        """The wanted rollouts, row by row and each row's repeats together."""
        with closing(_rows(self.path, self.rows, self.prompt)) as lines:
            for number, line in enumerate(lines):
                for repeat in range(repeats):
                    key = Key(number, repeat)
                    if wanted(key):
                        yield Task(key, line.row)


class JudgedRows(Reader):
    """Reads rows that a verifier will judge; refuses those that wouldn't reach it as they are."""

    def parse(self, stream: Iterable[bytes], path: Path, offset: int = 0) -> Iterator[Line]:
        """The rows of some lines of a file, see `Reader.parse`.

        Raises:
            ConfigError: a row holds a number that would be rounded; with file and line.
        """
        text = b""

        def noted() -> Iterator[bytes]:
            nonlocal text
            for given in stream:
                text = given
                yield given

        for line in super().parse(noted(), path, offset):
            refuse_rounded(text, line.where)
            yield line


def _rows(
    path: Path, limit: int | None, prompt: PromptConfig | None
) -> Generator[Line, None, None]:
    with closing(line for line in JudgedRows([path])) as lines:
        for line in islice(lines, limit):
            if prompt is not None:
                line = line._replace(row=prompt.apply(line.row, where=line.where))
            params = line.row.get(wire.RESPONSES_CREATE_PARAMS)
            given = params.get("input") if isinstance(params, Mapping) else None
            if not given or not isinstance(given, str | list):
                raise ConfigError(
                    f"{line.where}: $.responses_create_params.input is missing or empty; a row "
                    "needs a prompt: a text, or a list of messages (or --prompt, which makes one "
                    "of its fields)"
                )
            yield line


def file_sha256(path: Path) -> str:
    """The hash of a file as it lies on disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
