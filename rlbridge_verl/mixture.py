"""Several files' rows as one list, in the proportions of their weights. Drops no row.

An epoch is as long as it takes to show every row of every file at least once; rows of files whose
share is larger than their size come several times. The order is even: any stretch of an epoch
has nearly the proportions of the whole, whether verl shuffles it or not.
"""

from collections.abc import Sequence
from typing import TypeVar

from rlbridge.errors import ConfigError

Row = TypeVar("Row")


def mixed(files: Sequence[Sequence[Row]], weights: Sequence[float] = ()) -> list[Row]:
    """The rows of an epoch.

    Args:
        files: rows by file; none is empty.
        weights: a positive share for each file, in any unit; none appends the files.

    Raises:
        ConfigError: not as many weights as files, or one that isn't positive.
    """
    if not weights:
        return [row for rows in files for row in rows]
    if len(weights) != len(files):
        raise ConfigError(f"{len(weights)} weights for {len(files)} files; give each file one")
    if min(weights) <= 0:
        raise ConfigError(
            f"weights must be positive, got {list(weights)}; leave a file out instead"
        )
    scale = max(len(rows) / weight for rows, weight in zip(files, weights, strict=True))
    places = []
    for number, (rows, weight) in enumerate(zip(files, weights, strict=True)):
        count = max(len(rows), round(scale * weight))
        places += [((k + 0.5) / count, number, rows[k % len(rows)]) for k in range(count)]
    places.sort(key=lambda place: place[:2])
    return [row for _, _, row in places]
