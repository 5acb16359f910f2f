"""10,000 verifies against a hostile server on real sockets: nothing invented, lost or doubled.

Each pair has a reward of its own, so a reward that belongs to another pair, or to none, is seen.
Run: `python -m benchmarks.gym_faults [--quick] [--json] [--transport aiohttp|httpx|both]`.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any
from urllib.request import urlopen

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import Reward
from rlbridge.gym import GymClient
from rlbridge.testing import Behaviour, FaultKind, Faults, GymServer, make_row

RATE = 0.3
# Rare kinds that cost a whole deadline or 2 MB each; the others share the rest.
COSTLY = (FaultKind.SLOW, FaultKind.SLOW_BODY, FaultKind.GARBAGE)
TRANSPORTS = ("aiohttp", "httpx")
SUMMED = ("verifies", "valid", "invalid", "invented", "lost", "doubled")
DEADLINE_S = 1.0
ROW = make_row(expected_answer="4")


def value_of(index: int) -> float:
    """The one right reward of pair `index`."""
    return (index * 7919 % 100_003) / 1000


def scripted(body: dict[str, Any]) -> float:
    """The server's reward: that of the pair whose number the response is."""
    return value_of(int(body["response"]["output"][0]["content"][0]["text"]))


def kinds() -> list[FaultKind]:
    """All kinds, the cheap ones often."""
    cheap = [kind for kind in FaultKind if kind not in COSTLY]
    return cheap * 12 + list(COSTLY)


async def serve(seed: int) -> None:
    """The hostile server, until standard input ends; a line on it is a restart."""
    behaviour = Behaviour(rewards=scripted, faults=Faults(rate=RATE, kinds=kinds(), seed=seed))
    behaviour.tools = {"dealt": lambda _session, _body: dict(behaviour.faults.dealt)}
    async with GymServer(behaviour) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        while await asyncio.to_thread(sys.stdin.readline):
            await server.stop()
            await asyncio.sleep(0.3)
            await server.start()


@contextmanager
def hostile_server(seed: int) -> Iterator["tuple[str, Popen[str]]"]:
    """The server in a process of its own: its URL and its process."""
    command = [sys.executable, "-m", "benchmarks.gym_faults", "--serve", str(seed)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("a pipe was asked for")
        yield process.stdout.readline().strip(), process


async def verify_all(
    url: str, server: "Popen[str]", count: int, transport: str
) -> tuple[list[Reward], Counter[int], dict[str, Any]]:
    """Verify all pairs, every eighth in a session; the server restarts once, midway."""
    config = GymConfig.parse(
        {
            "url": url,
            "transport": transport,
            "max_concurrency": 64,
            "verify_timeout_s": DEADLINE_S,
            "backoff_initial_s": 0.02,
            "backoff_max_s": 0.2,
        }
    )
    done: Counter[int] = Counter()
    rewards: dict[int, Reward] = {}
    todo = iter(range(count))

    async with GymClient(config) as gym:

        async def one(index: int) -> Reward:
            if index % 8:
                return await gym.verify(ROW, str(index))
            async with gym.session(ROW) as session:
                return await session.verify(str(index))

        async def work() -> None:
            for index in todo:
                if index == count // 2 and server.stdin is not None:
                    server.stdin.write("restart\n")
                    server.stdin.flush()
                rewards[index] = await one(index)
                done[index] += 1

        await asyncio.gather(*(work() for _ in range(128)))
        return [rewards[index] for index in range(count)], done, gym.stats.snapshot()


def dealt(url: str) -> dict[str, int]:
    """What the server dealt out, by kind."""
    with urlopen(f"{url}/dealt", data=b"{}", timeout=10) as answer:  # noqa: S310 (our own)
        return dict(json.loads(answer.read()))


def measure(count: int, transport: str, seed: int) -> dict[str, Any]:
    """Run it, and hold every reward against the one right answer."""
    began = time.monotonic()
    with hostile_server(seed) as (url, server):
        rewards, done, stats = asyncio.run(verify_all(url, server, count, transport))
        faults = dealt(url)
    valid = [(n, reward) for n, reward in enumerate(rewards) if reward.valid]
    classes = Counter(str(reward.failure) for reward in rewards if not reward.valid)
    # What the client counted must be what it returned; its sum must be what was asked.
    lost = count - len(done) + stats["in_progress"]
    lost += abs(stats["verifies"] - count) + abs(stats["valid"] - len(valid))
    return {
        "verifies": count,
        "valid": len(valid),
        "invalid": sum(classes.values()),
        "invented": sum(reward.value != value_of(n) for n, reward in valid),
        "lost": lost,
        "doubled": sum(times - 1 for times in done.values()),
        "classes": dict(classes),
        "faults": faults,
        "stats": stats,
        "seconds": time.monotonic() - began,
    }


def report(runs: dict[str, dict[str, Any]]) -> str:
    """The table for people: a column for each transport."""
    figures = list(runs.values())
    stats = [run["stats"] for run in figures]
    lines = [
        f"verifies against a hostile server: {RATE:.0%} of the answers spoiled, one restart midway",
        _line("", runs),
        *(_line(key, [run[key] for run in figures]) for key in SUMMED),
        _line("requests sent", [sum(counted["attempts"].values()) for counted in stats]),
        _line("retries", [counted["retries"] for counted in stats]),
        _line("seconds", [round(run["seconds"]) for run in figures]),
        "faults dealt by the server:",
        *_lines([run["faults"] for run in figures]),
        "attempts that failed, as the client classed them:",
        *_lines([counted["failures"] for counted in stats]),
        "verifies that ended invalid, by class:",
        *_lines([run["classes"] for run in figures]),
    ]
    return "\n".join(lines)


def _lines(columns: list[dict[str, int]]) -> list[str]:
    names = sorted({str(name) for column in columns for name in column})
    return [_line(name, [column.get(name, 0) for column in columns]) for name in names]


def _line(name: str, cells: Iterable[object]) -> str:
    return f"  {name:<20}" + "".join(f"{cell:>9}" for cell in cells)


def main() -> None:
    """Run the benchmark; exit status 1 if anything was invented, lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="2,000 verifies a transport: under 45 s"
    )
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON, summed over the transports"
    )
    parser.add_argument("--transport", choices=[*TRANSPORTS, "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return
    # The restart is planned: what the client logs of it is no news to a reader of the table.
    logging.getLogger("rlbridge.gym").setLevel(logging.ERROR)
    count = 2000 if options.quick else 10_000
    chosen = TRANSPORTS if options.transport == "both" else (options.transport,)
    runs = {transport: measure(count, transport, options.seed) for transport in chosen}
    total = {key: sum(run[key] for run in runs.values()) for key in SUMMED}
    if options.json:
        sys.stderr.write(report(runs) + "\n")
        sys.stdout.write(json.dumps(total) + "\n")
    else:
        sys.stdout.write(report(runs) + "\n")
    sys.exit(any(total[key] for key in ("invented", "lost", "doubled")))


if __name__ == "__main__":
    main()
