"""What the gateway costs a model call: against no proxy and against NeMo Gym's model server.

All contenders stand before the same stub engine, which answers in well under a millisecond, and
take turns within a run: a noisy neighbour hits all of them. The gateway runs as users run it, one
process with captures written to disk. Then, on a real vLLM, end to end against asking it directly.
Run: `python -m benchmarks.gateway [--quick] [--json]`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.gateway_contenders import (
    QUESTION,
    Contender,
    direct,
    make_tokenizer,
    running_gateway,
    running_nemo_gym_model,
)
from benchmarks.gateway_load import Load, chat_bodies, drive
from benchmarks.stub_engine import MODEL, Answer, running_stub
from rlbridge.testing.real_servers import why_unavailable

LEVELS = (1, 16, 64, 1000)
TURNS = 4
GROWTH = (8, 128)
# Requests a turn of the benchmark; NeMo Gym's server answers a few hundred a second.
REQUESTS = {1: 400, 16: 1600, 64: 1600, 1000: 4000}
REQUESTS_NEMO_GYM = {1: 120, 16: 320, 64: 320, 1000: 1000}
_fresh = count()


def sessions(number: int) -> list[str]:
    """IDs nobody has used before."""
    return [f"b{next(_fresh)}" for _ in range(number)]


def play(contender: Contender, bodies: Sequence[bytes], sessions_: int, at_once: int) -> Load:
    """One contender's turn."""
    import uvloop

    return uvloop.run(
        drive(contender.url, contender.path, bodies, sessions(sessions_), at_once=at_once,
              pid=contender.pid)
    )  # fmt: skip


def bodies_of(contender: Contender, answer: Answer, turns: int) -> list[bytes]:
    """What the contender's client sends in a conversation of so many turns."""
    return chat_bodies(QUESTION, answer.text, turns, model=MODEL, **contender.fields)


def levels(contenders: list[Contender], answer: Answer, rounds: int, say: Callable[[str], None]
           ) -> dict[int, dict[str, list[Load]]]:  # fmt: skip
    """Every contender at every number of sessions, `rounds` times in turn."""
    loads: dict[int, dict[str, list[Load]]] = {}
    bodies = {one.name: bodies_of(one, answer, TURNS) for one in contenders}
    for one in contenders:
        play(one, bodies[one.name], 16, 4)  # connections, caches, code paths
    for level in LEVELS:
        loads[level] = {one.name: [] for one in contenders}
        for turn in range(rounds):
            for one in contenders:
                few = REQUESTS_NEMO_GYM if one.name == "nemo_gym" else REQUESTS
                number = max(level, few[level] // TURNS)
                sent = bodies[one.name][: max(1, few[level] // number)]
                loads[level][one.name].append(play(one, sent, number, level))
            say(f"{level} sessions at once: round {turn + 1} of {rounds}")
    return loads


def growth(contenders: list[Contender], answer: Answer, rounds: int) -> dict[int, float]:
    """Milliseconds the gateway adds to a turn, by the turn's number; median over sessions.

    Whole conversations of 128 turns, one at a time; the turns around the 8th and the 128th are
    looked at, the engine's own time subtracted.
    """
    spans = {8: slice(4, 12), 128: slice(120, 128)}
    seen: dict[tuple[str, int], list[float]] = {}
    bodies = {one.name: bodies_of(one, answer, GROWTH[-1]) for one in contenders}
    for _ in range(rounds):
        for one in contenders:
            by_turn = turn_latencies(one, bodies[one.name])
            for turn, span in spans.items():
                seen.setdefault((one.name, turn), []).extend(by_turn[span])
    typical = {key: statistics.median(values) * 1e3 for key, values in seen.items()}
    return {turn: typical["gateway", turn] - typical["direct", turn] for turn in GROWTH}


def turn_latencies(contender: Contender, bodies: Sequence[bytes]) -> list[float]:
    """Latency of each turn of one conversation, seconds."""
    import uvloop

    session = sessions(1)
    return list(
        uvloop.run(
            drive(contender.url, contender.path, bodies, session, at_once=1, in_order=True)
        ).latencies_s
    )


def on_stub(*, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Every figure that needs no real engine."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        answer = make_tokenizer(folder / "tokenizer")
        url, pid = stack.enter_context(running_stub(answer))
        say("starting the contenders")
        gateway = stack.enter_context(
            running_gateway(url, folder / "tokenizer", folder / "captures")
        )
        contenders = [direct(url, pid), gateway]
        if why_unavailable():
            say(f"without NeMo Gym's model server: {why_unavailable()}")
        else:
            contenders.append(stack.enter_context(running_nemo_gym_model(url, MODEL)))
        loads = levels(contenders, answer, 2 if quick else 4, say)
        return {"loads": loads, "growth": growth(contenders[:2], answer, 3 if quick else 6)}


def on_vllm(say: Callable[[str], None]) -> dict[str, float]:
    """End-to-end p50 of a chat call, by contender, on a real vLLM on this CPU."""
    from benchmarks.drift import PARSERS
    from benchmarks.engine import serve
    from benchmarks.tiny_model import make

    say("starting a real vLLM (about a minute)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = folder / "tiny"
        server = stack.enter_context(serve(model, folder / "vllm.log", *PARSERS))
        make(model, steps=40)
        server.wait()
        gateway = stack.enter_context(running_gateway(server.url, model, folder / "captures"))
        contenders = [direct(server.url, server.process.pid), gateway]
        latencies: dict[str, list[float]] = {one.name: [] for one in contenders}
        for number in range(30):
            body = chat_bodies(f"{number} {QUESTION}", "", 1, model="tiny", ignore_eos=True)[0]
            for one in contenders if number % 2 else contenders[::-1]:
                asked = json.loads(body) | one.fields
                load = play(one, [json.dumps(asked).encode()], 1, 1)
                if number >= 4:
                    latencies[one.name] += load.latencies_s
        return {name: statistics.median(values) for name, values in latencies.items()}


def median(loads: list[Load], read: Callable[[Load], float]) -> float:
    """Median of a figure over rounds."""
    return statistics.median(read(load) for load in loads)


def added_ms(by_name: dict[str, list[Load]], name: str, percent: int) -> float:
    """Latency a contender adds to the engine's own at a percentile."""
    own, bare = (
        median(by_name[one], lambda load: load.percentile_ms(percent)) for one in (name, "direct")
    )
    return own - bare


def summary(stub: dict[str, Any], vllm: dict[str, float] | None) -> dict[str, Any]:
    """The figures that a machine compares; `requests_per_s` at the level that gives most."""
    loads = stub["loads"]
    rates = [median(by_name["gateway"], lambda load: load.requests_per_s)
             for level, by_name in loads.items() if level > 1]  # fmt: skip
    figures: dict[str, Any] = {
        "added_p50_ms": {
            str(level): round(added_ms(by_name, "gateway", 50), 3)
            for level, by_name in loads.items()
        },
        "requests_per_s": round(max(rates), 1),
        "growth_turn_8_to_128": round(stub["growth"][128] / stub["growth"][8], 3),
    }
    if vllm is not None:
        figures["vllm_p50_ratio"] = round(vllm["gateway"] / vllm["direct"], 4)
    return figures


def report(stub: dict[str, Any], vllm: dict[str, float] | None) -> str:
    """The figures for people."""
    lines = [
        f"{'sessions':>9} {'server':>9} {'added ms p50':>13} {'p95':>9} {'p99':>9} "
        f"{'requests/s':>11} {'CPU µs/request':>15} {'load generator':>15}"
    ]
    for level, by_name in stub["loads"].items():
        for name, loads in by_name.items():
            added = [added_ms(by_name, name, percent) for percent in (50, 95, 99)]
            if name == "direct":
                added = [median(loads, lambda load, p=p: load.percentile_ms(p))  # type: ignore[misc]
                         for p in (50, 95, 99)]  # fmt: skip
            lines.append(
                f"{level:>9} {name:>9} {added[0]:13.2f} {added[1]:9.2f} {added[2]:9.2f} "
                f"{median(loads, lambda load: load.requests_per_s):11.0f} "
                f"{median(loads, lambda load: load.server_cpu_us):15.0f} "
                f"{median(loads, lambda load: load.client_cpu):14.0%}"
            )
    turn_8, turn_128 = stub["growth"][8], stub["growth"][128]
    lines += [
        "direct: the engine's own latency, not what is added. Load generator: its share of a core.",
        f"history: {turn_8:.2f} ms added at turn 8, {turn_128:.2f} ms at turn 128, "
        f"{turn_128 / turn_8:.2f} times as much",
    ]
    if vllm is not None:
        lines.append(
            f"real vLLM on this CPU, p50 of a call of 64 tokens: {vllm['direct'] * 1e3:.1f} ms "
            f"directly, {vllm['gateway'] * 1e3:.1f} ms through the gateway, "
            f"ratio {vllm['gateway'] / vllm['direct']:.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the stub part alone, fewer rounds")
    parser.add_argument("--json", action="store_true", help="one line of JSON for machines")
    options = parser.parse_args()

    def say(words: str) -> None:
        sys.stderr.write(words + "\n")
        sys.stderr.flush()

    stub = on_stub(quick=options.quick, say=say)
    vllm = None if options.quick else on_vllm(say)
    text = report(stub, vllm)
    sys.stdout.write((json.dumps(summary(stub, vllm)) if options.json else text) + "\n")
    if options.json:
        say(text)


if __name__ == "__main__":
    main()
