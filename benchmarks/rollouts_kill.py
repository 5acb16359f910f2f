"""`kill -9` at random moments of a collection against flaky servers: is a row lost, or doubled?

A collection of 5,000 rollouts (policy and verdicts; the reward server fails now and then) is
killed 50 times and started again each time, then compared, row for row, with one that was left
alone. IDs and times that the gateway gives answers are left out of the comparison.
Run: `python -m benchmarks.rollouts_kill [--quick] [--json]`.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

from rlbridge.rollouts.index import ENTRY_BYTES
from rlbridge.testing import Behaviour, FaultKind, Faults, GymServer, make_row
from rlbridge.testing.vllm_server import VllmServer

REPEATS = 2
GIVEN = {"id", "created_at", "completed_at"}
KINDS = [
    FaultKind.STATUS_500,
    FaultKind.STATUS_503,
    FaultKind.RESET,
    FaultKind.RESET_MID_BODY,
    FaultKind.TRUNCATED_JSON,
    FaultKind.GARBAGE,
]


def judged(body: dict[str, Any]) -> float:
    """A verdict that follows from the answer alone, different from row to row."""
    return sum(body["response"]["output"][0]["content"][0]["text"].encode()) % 100 / 100


async def serve() -> None:
    """Both servers, until standard input ends."""
    behaviour = Behaviour(rewards=judged, faults=Faults(rate=0.1, kinds=KINDS, seed=3))
    async with GymServer(behaviour) as gym, VllmServer(kind="text") as policy:
        sys.stdout.write(json.dumps({"gym": gym.url, "policy": policy.url}) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """The servers in a process of their own: their URLs."""
    command = [sys.executable, "-m", "benchmarks.rollouts_kill", "--serve"]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("pipes were asked for")
        yield json.loads(process.stdout.readline())
        process.stdin.close()


def start(urls: dict[str, str], rows: Path, output: Path) -> "Popen[str]":
    command = [sys.executable, "-m", "rlbridge", "rollouts", "collect", "--ordered"]
    command += ["--policy", urls["policy"], "--gym", urls["gym"], "--input", str(rows)]
    command += ["--output", str(output), "--repeats", str(REPEATS), "--concurrency", "32"]
    command += ["--attempts", "20", "--max-output-tokens", "24"]
    return Popen(command, stdout=PIPE, stderr=STDOUT, text=True)


def kept(output: Path) -> int:
    index = output.with_name(output.name + ".index")
    return index.stat().st_size // ENTRY_BYTES if index.exists() else 0


def kill_once(
    urls: dict[str, str], rows: Path, output: Path, target: int, chance: random.Random
) -> bool:
    """Start, kill once `target` rows are kept or a little later; False if it ended before."""
    with start(urls, rows, output) as run:
        deadline = time.monotonic() + 120
        while run.poll() is None and kept(output) < target and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.02))
        alive = run.poll() is None
        run.send_signal(signal.SIGKILL)
    return alive


def finish(urls: dict[str, str], rows: Path, output: Path) -> None:
    with start(urls, rows, output) as run:
        said = run.communicate(timeout=600)[0]
    if run.returncode:
        raise RuntimeError(said)


def keys(path: Path) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for line in path.read_bytes().splitlines():
        row = json.loads(line)
        found[row["_ng_task_index"], row["_ng_rollout_index"]] += 1
    return found


def same(line: str, other: str) -> bool:
    """Whether two rows are equal but for the IDs and times that a gateway gives each answer."""
    return said(json.loads(line)) == said(json.loads(other))


def said(row: Any) -> Any:
    if isinstance(row, dict):
        return {key: said(value) for key, value in row.items() if key not in GIVEN}
    return [said(value) for value in row] if isinstance(row, list) else row


def measure(rollouts: int, kills: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, servers() as urls:
        rows = Path(folder) / "rows.jsonl"
        tasks = (make_row(f"task {n}: " + "x" * (n % 400)) for n in range(rollouts // REPEATS))
        rows.write_text("".join(json.dumps(task) + "\n" for task in tasks))
        whole, killed = Path(folder) / "whole.jsonl", Path(folder) / "killed.jsonl"
        began = time.monotonic()
        finish(urls, rows, whole)
        whole_s = time.monotonic() - began
        done, torn = 0, 0
        for number in range(kills):
            target = max(kept(killed) + 1, rollouts * number // kills)
            done += kill_once(urls, rows, killed, target, chance)
            data = killed.read_bytes() if killed.exists() else b""
            torn += bool(data) and not data.endswith(b"\n")
            torn += data.count(b"\n") != kept(killed)
            show(f"kill {number + 1} of {kills}: {kept(killed):,} rows kept")
        finish(urls, rows, killed)
        found = keys(killed)
        return {
            "rollouts": rollouts,
            "kills": done,
            "files_found_torn_or_behind": torn,
            "rows": found.total(),
            "lost": rollouts - len(found),
            "doubled": found.total() - len(found),
            "equal": all(
                same(line, other) for line, other in zip(killed.open(), whole.open(), strict=True)
            ),
            "uninterrupted_s": round(whole_s, 1),
            "rollouts_per_s": round(rollouts / whole_s, 1),
        }


def show(text: str) -> None:
    sys.stderr.write(f"\r{text} ")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="400 rollouts, 6 kills")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    size = (400, 6) if options.quick else (5000, 50)
    result = measure(*size, options.seed)
    show("\n")
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        for name, value in result.items():
            sys.stdout.write(f"{name:>28}  {value}\n")
    if result["lost"] or result["doubled"] or not result["equal"]:
        sys.exit("rows were lost, doubled or changed")


if __name__ == "__main__":
    main()
