"""Lines that can't be used: counted, kept with the reason, and fatal above a share of all lines.

Refuses to lose one: the line itself stands in the rejects file, with its place and what is wrong.
"""

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import orjson

from rlbridge.errors import ConfigError, ContractError

_EARLY_LINES = 10_000


class BadRowError(ContractError):
    """A row can't be used.

    Attributes:
        at: JSON path of what is wrong, such as `$.response.output[2].content`.
        kind: a short name of the fault, the same for all rows that have it; for counts.
    """

    def __init__(self, message: str, *, at: str = "$", kind: str = "malformed") -> None:
        super().__init__(message)
        self.at = at
        self.kind = kind


class Rejects:
    """Keeps the lines that can't be used, and ends the work when there are too many.

    Args:
        path: where the lines go, as JSON lines `{file, line, offset, at, kind, reason, text}`;
            made when the first one comes, and an older one is removed then. None keeps counts only.
        allowed_share: the share of all lines that may be bad, 0 to 1.

    Raises:
        ConfigError: from `add` and `finish`, when more are bad than allowed.
    """

    def __init__(self, path: Path | None = None, *, allowed_share: float = 0.01) -> None:
        self.path = path
        self.allowed_share = allowed_share
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self.first = ""
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(
        self, file: Path, line: int, offset: int, error: BadRowError, text: bytes, *, lines: int
    ) -> None:
        """Keep one line.

        Args:
            file: the file it is in.
            line: its number, from 1; of a Parquet file the row's.
            offset: its first byte, in the decompressed file; -1 in a Parquet file.
            error: what is wrong.
            text: the line itself.
            lines: how many lines were read so far, this one included.

        Raises:
            ConfigError: many lines were read and more of them are bad than allowed.
        """
        self.count += 1
        self.kinds[error.kind] += 1
        if not self.first:
            self.first = f"{file}:{line}: {error.at}: {str(error).removeprefix(error.at).lstrip()}"
        if self.path is not None:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb")
            record = {
                "file": str(file),
                "line": line,
                "offset": offset,
                "at": error.at,
                "kind": error.kind,
                "reason": str(error),
                "text": text.decode("utf-8", "backslashreplace").rstrip("\r\n"),
            }
            self._file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        if lines >= _EARLY_LINES and self.count > lines * self.allowed_share:
            self.finish(lines)

    def finish(self, lines: int) -> None:
        """Check the share once all `lines` are read.

        Raises:
            ConfigError: more lines are bad than allowed.
        """
        if self._file is not None:
            self._file.flush()
        if self.count <= lines * self.allowed_share:
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        kept = f"; all are kept in {self.path}" if self.path is not None else ""
        raise ConfigError(
            f"{self.count} of {lines} lines can't be used ({kinds}), more than the allowed "
            f"{self.allowed_share:.2%}. The first: {self.first}{kept}. Mend them, or allow more "
            f"with --max-bad {min(1.0, self.count / lines + 0.0005):.1%}"
        )
