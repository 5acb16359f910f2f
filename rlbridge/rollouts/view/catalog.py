"""What stands where in a rollout file, in a few bytes a row: for pages, filters and search.

Built once in one pass and kept beside the file; built anew when the file has changed. Refuses
packed files, which can't be read from the middle.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.transforms.conversation import reward_of, why_invalid
from rlbridge.transforms.reading import Reader
from rlbridge.transforms.rejects import Rejects

_VERSION: Final = 1
_PIECE: Final = 4 << 20
MAX_HITS: Final = 2000
_COLUMNS: Final = {
    "offset": np.int64,
    "reward": np.float64,
    "environment": np.int32,
    "failure": np.int32,
    "calls": np.int32,
    "tokens": np.int32,
    "task": np.int32,
    "rollout": np.int32,
}

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are wanted; everything that is None lets all through.

    Attributes:
        reward_min: least reward; rows without a valid one don't pass.
        reward_max: highest reward; likewise.
        environment: name of the environment.
        failure: why there is no valid reward; `any` for all such rows, `none` for all others.
        sort: `file`, `reward`, `tokens` or `calls`; the last three largest first.
    """

    reward_min: float | None = None
    reward_max: float | None = None
    environment: str | None = None
    failure: str | None = None
    sort: str = "file"


class Catalog:
    """The columns of one file.

    Args:
        path: the file.
        columns: one number a row, by `_COLUMNS`' names.
        environments: names that `environment` counts in.
        failures: names that `failure` counts in; 0 is the empty name, of rows without one.
        bad: lines that are no rows.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, npt.NDArray[Any]],
        environments: list[str],
        failures: list[str],
        bad: int = 0,
    ) -> None:
        self.path = path
        self.columns = columns
        self.environments = environments
        self.failures = failures
        self.bad = bad

    def __len__(self) -> int:
        return len(self.columns["offset"])

    @classmethod
    def of(cls, path: Path, progress: Progress | None = None) -> "Catalog":
        """The catalog of a file: the one kept beside it, or a new one.

        Args:
            path: a JSON-lines file.
            progress: called now and then with the bytes read since the last call.

        Raises:
            ConfigError: there is no such file, it is packed, or it holds no rows.
        """
        if path.suffix in (".gz", ".zst", ".parquet", ".pq"):
            raise ConfigError(
                f"{path} is packed, and a page needs rows from its middle; unpack it first "
                f"(gzip -dk, zstd -d), or write it as .jsonl"
            )
        kept = _kept(path)
        if kept is not None:
            return kept
        catalog = _build(path, progress)
        if not len(catalog):
            raise ConfigError(f"{path} holds no rows")
        _keep(catalog)
        return catalog

    def select(self, wanted: Filter) -> npt.NDArray[np.int64]:
        """Numbers of the rows that pass, in the wanted order."""
        columns = self.columns
        passed = np.ones(len(self), dtype=np.bool_)
        if wanted.reward_min is not None:
            passed &= columns["reward"] >= wanted.reward_min
        if wanted.reward_max is not None:
            passed &= columns["reward"] <= wanted.reward_max
        if wanted.environment is not None:
            passed &= columns["environment"] == _number(self.environments, wanted.environment)
        if wanted.failure == "any":
            passed &= columns["failure"] != 0
        elif wanted.failure is not None:
            name = "" if wanted.failure == "none" else wanted.failure
            passed &= columns["failure"] == _number(self.failures, name)
        numbers = np.flatnonzero(passed)
        if wanted.sort in ("reward", "tokens", "calls"):
            keys = columns[wanted.sort][numbers].astype(np.float64)
            keys[np.isnan(keys)] = -np.inf
            numbers = numbers[np.argsort(-keys, kind="stable")]
        return numbers

    def counts(self, column: str, names: list[str]) -> dict[str, int]:
        """How many rows each name has, most first."""
        found = np.bincount(self.columns[column], minlength=len(names)).tolist()
        pairs = sorted(zip(names, found, strict=True), key=lambda pair: -pair[1])
        return {name: count for name, count in pairs if count}

    def search(self, text: str) -> Iterator[tuple[int, list[int]]]:
        """Look for text in all rows; letters of ASCII in either case.

        Yields:
            Bytes read so far, and the rows found since the last time. Ends after `MAX_HITS`.
        """
        # As orjson and as Python's json write it: letters beyond ASCII differ.
        needles = {form[1:-1].lower() for form in (orjson.dumps(text), json.dumps(text).encode())}
        found = position = 0
        fresh: list[int] = []
        with self.path.open("rb", buffering=_PIECE) as file:
            for number, offset in enumerate(self.columns["offset"].tolist()):
                if offset != position:  # blank and bad lines are in no row
                    file.seek(offset)
                line = file.readline()
                position = offset + len(line)
                lowered = line.lower()
                if any(needle in lowered for needle in needles):
                    fresh.append(number)
                    found += 1
                if not number & 0xFF or found >= MAX_HITS:
                    yield position, fresh
                    fresh = []
                if found >= MAX_HITS:
                    return
        yield position, fresh


def _number(names: list[str], name: str) -> int:
    return names.index(name) if name in names else -1


def _build(path: Path, progress: Progress | None) -> Catalog:
    rejects = Rejects(allowed_share=1.0)
    reader = Reader([path], rejects=rejects, progress=progress)
    columns: dict[str, array[Any]] = {
        name: array("d" if name == "reward" else "q") for name in _COLUMNS
    }
    environments: dict[str, int] = {}
    failures: dict[str, int] = {"": 0}
    for line in reader:
        row = line.row
        reward = reward_of(row)
        why = why_invalid(row) if reward is None else ""
        calls, tokens = _sampled(row)
        columns["offset"].append(line.offset)
        columns["reward"].append(float("nan") if reward is None else reward)
        columns["environment"].append(environments.setdefault(_environment(row), len(environments)))
        columns["failure"].append(failures.setdefault(why, len(failures)))
        columns["calls"].append(calls)
        columns["tokens"].append(tokens)
        columns["task"].append(_index(row, wire.TASK_INDEX))
        columns["rollout"].append(_index(row, wire.ROLLOUT_INDEX))
    arrays = {name: np.asarray(columns[name], dtype=kind) for name, kind in _COLUMNS.items()}
    return Catalog(path, arrays, list(environments), list(failures), rejects.count)


def _environment(row: Mapping[str, Any]) -> str:
    agent = row.get(wire.AGENT_REF)
    return str(agent.get("name") or "") if isinstance(agent, Mapping) else ""


def _index(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**31 else -1


def _sampled(row: Mapping[str, Any]) -> tuple[int, int]:
    """Model calls with token fields, and the tokens they sampled."""
    response = row.get(wire.RESPONSE)
    output = response.get("output") if isinstance(response, Mapping) else row.get("output")
    counts = [
        len(item[wire.GENERATION_TOKEN_IDS])
        for item in (output if isinstance(output, list) else ())
        if isinstance(item, Mapping) and isinstance(item.get(wire.GENERATION_TOKEN_IDS), list)
    ]
    return len(counts), sum(counts)


def _cache(path: Path) -> Path:
    return path.with_name(f".{path.name}.view.npz")


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [_VERSION, stat.st_size, stat.st_mtime_ns]


def _kept(path: Path) -> Catalog | None:
    """The catalog beside the file; None if there is none or the file has changed."""
    try:
        with np.load(_cache(path), allow_pickle=False) as kept:
            about = orjson.loads(kept["about"].tobytes())
            if about["stamp"] != _stamp(path):
                return None
            columns = {name: kept[name] for name in _COLUMNS}
        return Catalog(path, columns, about["environments"], about["failures"], about["bad"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _keep(catalog: Catalog) -> None:
    """Write the catalog beside its file; where that can't be, it is built anew next time."""
    about = {
        "stamp": _stamp(catalog.path),
        "environments": catalog.environments,
        "failures": catalog.failures,
        "bad": catalog.bad,
    }
    cache = _cache(catalog.path)
    draft = cache.with_name(cache.name + ".draft")
    try:
        with draft.open("wb") as file:
            data = np.frombuffer(orjson.dumps(about), dtype=np.uint8)
            np.savez_compressed(file, allow_pickle=False, about=data, **catalog.columns)
        draft.replace(cache)
    except OSError:
        draft.unlink(missing_ok=True)
