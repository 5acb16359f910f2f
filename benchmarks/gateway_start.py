"""What a gateway's start costs on captures that are there already: with indexes, and without.

Writes captures as a run leaves them (sessions of eight calls, a third never ended), then opens the
folder again and again, in turns: with the indexes gone, so that every segment is read in full, and
with them. Everything is in the page cache; from a cold disk reading in full costs its bandwidth
besides. Run: `python -m benchmarks.gateway_start [--quick] [--json]`.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.config import CaptureConfig

CALLS = 8
ROUNDS = 5


async def write(folder: Path, megabytes: int) -> int:
    """Fill a folder with so many megabytes of captures; how many calls."""
    random = np.random.default_rng(0)
    log = opened(folder)
    calls = 0
    while size(folder) < megabytes * 1e6:
        for session in range(64):
            for number in range(CALLS):
                log.append(f"rollout-{calls // CALLS:08}", "call", call(number, random))
                calls += 1
            if session % 3:
                log.append(f"rollout-{(calls - 1) // CALLS:08}", "end", {})
    await log.aclose()
    return calls


def call(number: int, random: np.random.Generator) -> dict[str, Any]:
    """A record of the size that a call of a few hundred tokens has."""
    sampled = int(random.integers(100, 700))
    return {
        "number": number,
        "message": {"role": "assistant", "content": "word " * sampled},
        "added": {"token_ids": random.integers(0, 150_000, 60)},
        "generation": [
            {"token_ids": random.integers(0, 150_000, sampled), "logprobs": -random.random(sampled)}
        ],
    }


def opened(folder: Path) -> CaptureLog:
    """A log on a folder, as a gateway opens it."""
    log = CaptureLog(folder, CaptureConfig(folder=folder, fsync="never", segment_mb=64))
    log.recover()
    return log


def size(folder: Path, pattern: str = "*.jsonl") -> int:
    """Bytes of segments, or of other files."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def drop_indexes(folder: Path) -> None:
    """Delete all indexes."""
    for index in folder.glob("*.index"):
        index.unlink()


async def start_s(folder: Path) -> float:
    """Seconds a start takes."""
    begun_s = time.perf_counter()
    log = opened(folder)
    taken_s = time.perf_counter() - begun_s
    await log.aclose()
    return taken_s


async def measure(megabytes: int) -> dict[str, Any]:
    """Median seconds of both, in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calls = await write(folder, megabytes)
        without, indexed = [], []
        for _ in range(ROUNDS):
            drop_indexes(folder)
            without.append(await start_s(folder))
            indexed.append(await start_s(folder))
        figures = {"without_s": statistics.median(without), "with_s": statistics.median(indexed)}
        indexes = size(folder, "*.index")
        return {
            "megabytes": round(size(folder) / 1e6),
            "calls": calls,
            **{name: round(value, 4) for name, value in figures.items()},
            "ratio": round(figures["without_s"] / figures["with_s"], 1),
            "index_share": round(indexes / size(folder), 5),
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 MB instead of 2 GB")
    parser.add_argument("--json", action="store_true", help="one line of JSON for machines")
    options = parser.parse_args()
    found = asyncio.run(measure(200 if options.quick else 2000))
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write(
        f"{found['megabytes']} MB of captures, {found['calls']:,} calls\n"
        f"start without indexes {found['without_s']:.3f} s, with them {found['with_s']:.3f} s, "
        f"{found['ratio']:.1f} times as fast; the indexes are "
        f"{found['index_share']:.2%} of the captures\n"
    )


if __name__ == "__main__":
    main()
