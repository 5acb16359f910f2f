"""Output files that are there whole or not at all: JSON lines, gzip, zstd, Parquet.

Each is written beside its place under another name, synced, and put in its place once every one
is complete. The sidecar `<output>.meta.json` says how the files were made.
"""

import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from rlbridge import __version__
from rlbridge.durable import sync_folder
from rlbridge.errors import ConfigError
from rlbridge.transforms.reading import zstandard

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_PARQUET_ROWS = 2048
# hashlib.file_digest takes 256 kB at a time, and each time this thread and the one that converts
# hand the interpreter lock over, which made a transform a sixth slower.
_HASHED_AT_ONCE = 4 << 20


class Outputs:
    """Files that get their names together, when the block ends without an error."""

    def __init__(self) -> None:
        self._ready: list[tuple[Path, Path]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for partial, path in self._ready:
            if kind is None:
                partial.replace(path)
            else:
                partial.unlink(missing_ok=True)
        if kind is None:
            for folder in {path.parent for _, path in self._ready}:
                sync_folder(folder)

    def write(self, path: Path, chunks: Iterable[bytes], schema: Any = None) -> None:
        """Write JSON lines, packed as the suffix says.

        Args:
            path: where they go in the end.
            chunks: bytes of JSON lines; a chunk may end within a line.
            schema: of a Parquet file, a pyarrow schema; None infers one.
        """
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent)
        self._ready.append((Path(name), path))
        with os.fdopen(handle, "wb", buffering=1 << 20) as file:
            if path.suffix == ".parquet":
                _write_parquet(file, _lines(chunks), schema)
            else:
                _write_lines(file, path.suffix, chunks)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp's own are for the owner alone

    def size(self, path: Path) -> int:
        """Bytes written for a file that has not got its name yet."""
        return next(partial.stat().st_size for partial, final in self._ready if final == path)


def check_output(path: Path) -> None:
    """Refuse a name whose packing nobody knows, and make the folder.

    Raises:
        ConfigError: the suffix is unknown or the folder can't be made.
    """
    if not path.name.endswith(SUFFIXES):
        raise ConfigError(f"{path}: the output's name must end in {', '.join(SUFFIXES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"can't make the folder of {path}: {error.strerror}") from error


def named_beside(path: Path, word: str) -> Path:
    """`train.jsonl.gz` and `validation` give `train.validation.jsonl.gz`."""
    suffix = next(s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(s))
    return path.with_name(f"{path.name.removesuffix(suffix)}.{word}{suffix}")


def stem_of(path: Path) -> str:
    """The file's name without any suffix of ours."""
    return path.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[0]


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def metadata(
    *,
    made_by: str,
    inputs: Iterable[dict[str, Any]],
    options: dict[str, Any],
    counts: dict[str, Any],
    outputs: Iterable[dict[str, Any]],
) -> str:
    """The text of a sidecar: who made the files, of what, how, and how many rows."""
    document = {
        "rlbridge": __version__,
        "made_by": made_by,
        "inputs": list(inputs),
        "options": options,
        "counts": counts,
        "outputs": list(outputs),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode() + "\n"


def fingerprint(path: Path) -> dict[str, Any]:
    """A file's path, size and SHA-256."""
    digest, chunk = hashlib.sha256(), bytearray(_HASHED_AT_ONCE)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            digest.update(memoryview(chunk)[:size])
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write_lines(file: BinaryIO, suffix: str, chunks: Iterable[bytes]) -> None:
    if suffix == ".gz":
        # No time and no name inside, so that equal rows make equal files.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            for chunk in chunks:
                packed.write(chunk)
    elif suffix == ".zst":
        with zstandard().ZstdCompressor().stream_writer(file, closefd=False) as packed:
            for chunk in chunks:
                packed.write(chunk)
    else:
        file.writelines(chunks)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines of chunks that may end within one."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def _write_parquet(file: BinaryIO, lines: Iterator[bytes], schema: Any) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("Parquet files need pyarrow: pip install 'rlbridge[data]'") from error
    writer: Any = None
    while (rows := [orjson.loads(line) for line in islice(lines, _PARQUET_ROWS)]) or not writer:
        table = pa.Table.from_pylist(rows, schema=schema)
        if writer is None:
            writer = parquet.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()
