"""CPU a request: our client, all features on, against bare clients and the documented wrapper.

The stub server is a process of its own, so process CPU time is the client's alone. Variants take
turns within a run and medians of the turns are compared: a noisy neighbour hits all of them.
Run: `python -m benchmarks.gym_client [--quick] [--json]`.
"""

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.gym_variants import ROW, VARIANTS, Ask, text
from benchmarks.stub_gym import running_stub
from rlbridge.config import GymConfig
from rlbridge.gym import GymClient

LEVELS = (64, 512, 4096)
IN_FLIGHT = 16_384


async def drive(ask: Ask, concurrency: int, indices: Iterator[int]) -> None:
    """Answer all indices with `concurrency` workers."""

    async def work() -> None:
        for index in indices:
            await ask(index)

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def serve_turns(name: str, url: str, concurrency: int) -> None:
    """Take turns as told on standard input: a number of requests a line; answer with µs each.

    A variant is a process of its own, so that its garbage collector sees nobody else's objects.
    """
    async with VARIANTS[name](url, concurrency) as ask:
        start = 0
        for line in sys.stdin:
            count = int(line)
            before = time.process_time()
            await drive(ask, concurrency, iter(range(start, start + count)))
            start += count
            sys.stdout.write(f"{(time.process_time() - before) / count * 1e6}\n")
            sys.stdout.flush()


def cpu_us(
    url: str, names: list[str], concurrency: int, requests: int, turns: int
) -> dict[str, float]:
    """Median CPU microseconds a request by variant; the first turn opens connections."""
    results: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(name, url, concurrency)) for name in names}
        for turn in range(turns + 1):
            for name, worker in workers.items():
                figure = _turn(worker, requests if turn else min(requests, concurrency))
                if turn:
                    results[name].append(figure)
    return {name: statistics.median(values) for name, values in results.items()}


def _turn(worker: "subprocess.Popen[str]", requests: int) -> float:
    if worker.stdin is None or worker.stdout is None:
        raise RuntimeError("a worker has pipes")
    worker.stdin.write(f"{requests}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


@contextmanager
def _worker(name: str, url: str, concurrency: int) -> Iterator["subprocess.Popen[str]"]:
    module = [sys.executable, "-m", "benchmarks.gym_client"]
    command = [*module, "--worker", name, "--url", url, "--concurrency", str(concurrency)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        yield worker  # leaving closes its standard input, and that ends it


async def hold_in_flight(url: str) -> dict[str, float]:
    """16,384 verifies out at once against a slow stub: memory before and at the peak."""
    config = GymConfig(url=url, max_concurrency=IN_FLIGHT, verify_timeout_s=120)
    before_mb = rss_mb()
    async with GymClient(config) as gym:
        rewards = await gym.verify_batch([(ROW, text(index)) for index in range(IN_FLIGHT)])
    valid = sum(reward.valid for reward in rewards)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"valid": valid, "before_mb": before_mb, "rss_mb": peak_mb}


def rss_mb() -> float:
    """Resident memory now."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def in_flight(delay_s: float) -> dict[str, float]:
    """`hold_in_flight` in a process of its own, so that its memory is its own."""
    with running_stub(delay_s) as url:
        command = [sys.executable, "-m", "benchmarks.gym_client", "--hold", "--url", url]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        peak = counts(url)["peak"]
    return {**json.loads(done.stdout), "peak": peak}


async def upstream_share(url: str, groups: int = 64) -> float:
    """Requests the server saw for groups of 8 equal responses, cache on, by verifies asked."""
    before = counts(url)["served"]
    async with GymClient(url=url, cache="memory") as gym:
        pairs = [(ROW, text(-1 - group)) for group in range(groups) for _ in range(8)]
        await gym.verify_batch(pairs)
    return (counts(url)["served"] - before) / len(pairs)


def counts(url: str) -> dict[str, int]:
    """What the stub saw: requests served, and the most it held at once."""
    with urllib.request.urlopen(f"{url}/counts", timeout=10) as answer:  # noqa: S310 (our own)
        return dict(json.loads(answer.read()))


def measure(*, quick: bool) -> dict[str, dict[str, float]]:
    """All figures; `cpu` by concurrency and variant."""
    cpu: dict[str, dict[str, float]] = {}
    turns = 3 if quick else 7
    with running_stub() as url:
        for level in LEVELS:
            requests = max(1536, level * 5 // 4) if quick else max(8192, 2 * level)
            names = ["floor", "ours"] if quick else ["floor", "ours", "ours_unbounded", "wrapper"]
            cpu[str(level)] = cpu_us(
                url, names, level, requests, 2 if quick and level > 512 else turns
            )
        for level, requests in ((64, 48),) if quick else ((64, 1024), (512, 1024)):
            cpu[str(level)] |= cpu_us(url, ["wrapper", "httpx"], level, requests, 1)
        share = asyncio.run(upstream_share(url))
    held = in_flight(11.0 if quick else 25.0)
    return {**cpu, "held": held, "cache": {"upstream_share": share}}


def summary(figures: dict[str, dict[str, float]]) -> dict[str, object]:
    """The figures that a machine compares."""
    ours = {str(level): figures[str(level)]["ours"] for level in LEVELS}
    ratios = {level: round(ours[level] / figures[level]["floor"], 3) for level in ours}
    return {
        "ratio_to_floor": ratios,
        "growth_64_to_4096": round(ours["4096"] / ours["64"], 3),
        "in_flight_16384_rss_mb": round(figures["held"]["rss_mb"], 1),
    }


def report(figures: dict[str, dict[str, float]]) -> str:
    """The figures for people."""
    lines = ["CPU µs a request (client process), medians of turns taken alternately:"]
    names = ["floor", "ours", "ours_unbounded", "wrapper", "httpx"]
    lines.append(f"{'calls at once':>14}" + "".join(f"{name:>16}" for name in names))
    for level in map(str, LEVELS):
        row = figures[level]
        cells = (f"{row[name]:16.0f}" if name in row else f"{'-':>16}" for name in names)
        lines.append(f"{level:>14}" + "".join(cells))
    for level in map(str, LEVELS):
        row = figures[level]
        factors = ", ".join(f"{n} {row[n] / row['ours']:.2f}x" for n in names if n in row)
        lines.append(f"at {level}, against ours: {factors}")
    held = figures["held"]
    lines += [
        "ours: as configured by default, at most 256 requests on the wire, the rest in its queue;",
        "ours_unbounded: max_concurrency raised to the calls at once.",
        f"{held['peak']:.0f} of {IN_FLIGHT} in flight at once against a slow stub, "
        f"{held['valid']:.0f} valid: {held['rss_mb']:.0f} MB resident at the peak, "
        f"{held['before_mb']:.0f} MB before",
        f"8 equal responses a group, cache on: {figures['cache']['upstream_share']:.4f} upstream "
        "calls a verify",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 45 s, with fewer turns")
    parser.add_argument("--json", action="store_true", help="one line of JSON for machines")
    for hidden in ("--worker", "--url", "--concurrency"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--hold", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(serve_turns(options.worker, options.url, int(options.concurrency)))
        return
    if options.hold:
        sys.stdout.write(json.dumps(asyncio.run(hold_in_flight(options.url))) + "\n")
        return
    figures = measure(quick=options.quick)
    sys.stdout.write((json.dumps(summary(figures)) if options.json else report(figures)) + "\n")
    if options.json:
        sys.stderr.write(report(figures) + "\n")


if __name__ == "__main__":
    main()
