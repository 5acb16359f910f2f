"""What do the transforms cost over reading and writing, and over a script that users copy?

A file of Gym rollouts (2 KB a row, four a prompt, some with reasoning, tools or failures) goes
through each transform, through a bare `orjson` loop that reads every row and writes it again (the
floor), and through the kind of script that documents offer: all rows in lists, the standard
library's JSON. Each runs in a process of its own; a transform may start workers, as the command
line would. Peak memory is that process's peak and, for each worker, the peak of the largest one:
an upper bound, since what they share is counted each time. CPU seconds are those of all processes.
The script takes a tenth of the rows, since it would need more memory than many machines have.
Each ratio is to the mean of the floors right before and after it. `--quick` takes so little that
other work on the machine shows: it measures nine times, in turns, and gives medians.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import orjson

WORDS = (
    "the", "answer", "of", "number", "prime", "model", "value", "graph", "step", "because", "sum",
    "therefore", "x", "y", "we", "find", "that", "equals", "compute", "check",
)  # fmt: skip
# What Gym 0.4.0 writes of a request beside its input, nulls included.
PARAMS: dict[str, Any] = dict.fromkeys(
    ("background", "include", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
     "model", "previous_response_id", "prompt", "reasoning", "service_tier", "store", "text",
     "top_logprobs", "top_p", "truncation", "user", "stream")
) | {"parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto",
     "tools": []}  # fmt: skip
RESPONSE: dict[str, Any] = dict.fromkeys(
    ("error", "incomplete_details", "instructions", "metadata", "user")
) | {"created_at": 1795230457.0, "model": "policy", "object": "response", "tools": [],
     "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto",
     "usage": {"input_tokens": 80, "output_tokens": 90, "total_tokens": 170}}  # fmt: skip
GROUP = 4
MEASURED = ("grpo", "sft", "dpo", "sft_all")


def row(number: int, rng: random.Random) -> dict[str, Any]:
    """One rollout."""
    task = number // GROUP
    question = f"Question {task}: " + " ".join(
        WORDS[(task * 7 + j * (task % 13 + 1)) % len(WORDS)] for j in range(60)
    )
    answer = " ".join(rng.choices(WORDS, k=90)) + f" \\boxed{{{rng.randrange(100)}}}"
    output: list[dict[str, Any]] = []
    if number % 5 == 0:
        summary = [{"type": "summary_text", "text": answer[:200]}]
        output.append({"id": f"rs_{number}", "type": "reasoning", "summary": summary})
    if number % 10 == 3:
        output.append({"type": "function_call", "id": f"fc_{number}", "call_id": f"c_{number}",
                       "name": "calculator", "arguments": '{"expression": "47 * 23"}'})  # fmt: skip
        output.append({"type": "function_call_output", "call_id": f"c_{number}", "output": "1081"})
    output.append(
        {"id": f"msg_{number:032x}", "type": "message", "role": "assistant", "status": "completed",
         "content": [{"annotations": [], "text": answer, "type": "output_text"}]}
    )  # fmt: skip
    made = {
        "responses_create_params": PARAMS
        | {"input": [{"content": question, "role": "user", "type": "message"}]},
        "response": {"id": f"resp_{number:032x}", "output": output} | RESPONSE,
        "reward": rng.choice((0.0, 0.0, 0.5, 1.0, 1.0)),
        "expected_answer": "B",
        "extracted_answer": "B",
        "_ng_task_index": task,
        "_ng_rollout_index": number % GROUP,
        "agent_ref": {"type": "responses_api_agents", "name": "mcqa_simple_agent"},
    }
    if number % 50 == 7:
        made |= {"reward": None, "_ng_failure_class": "timeout"}
    return made


def write_rows(path: Path, count: int) -> None:
    rng = random.Random(0)
    with path.open("wb", buffering=1 << 20) as file:
        for number in range(count):
            file.write(orjson.dumps(row(number, rng), option=orjson.OPT_APPEND_NEWLINE))


def floor(source: Path, out: Path) -> None:
    """Read every row, write every row."""
    with source.open("rb", buffering=1 << 20) as lines, out.open("wb", buffering=1 << 20) as file:
        for line in lines:
            file.write(orjson.dumps(orjson.loads(line), option=orjson.OPT_APPEND_NEWLINE))


def ours(name: str) -> Callable[[Path, Path], None]:
    """A transform as the command line runs it by default, progress aside."""

    def work(source: Path, out: Path) -> None:
        from rlbridge.transforms import dpo, grpo, sft
        from rlbridge.transforms.pairs import Pairing
        from rlbridge.transforms.pipeline import transform
        from rlbridge.transforms.selection import Selection
        from rlbridge.transforms.workers import worthwhile_workers

        workers = worthwhile_workers([source])
        if name == "grpo":
            transform(grpo.job((source,), out, Selection(max_per_prompt=1), workers=workers))
        elif name == "sft":
            transform(sft.job((source,), out, Selection(min_reward=0.95), workers=workers))
        elif name == "sft_all":
            transform(sft.job((source,), out, Selection(), workers=workers))
        else:
            how = Pairing()
            dpo.transform(dpo.job((source,), out, Selection(), how, workers=workers), how)

    return work


def script(name: str) -> Callable[[Path, Path], None]:
    """What a user copies from a document: rows in a list, a filter, a loop, `json.dumps`."""

    def text_of(one: dict[str, Any]) -> str:
        return "\n".join(
            part["text"]
            for item in one["response"]["output"]
            if item["type"] == "message"
            for part in item["content"]
        )

    def prompt_of(one: dict[str, Any]) -> str:
        return str(one["responses_create_params"]["input"][-1]["content"])

    def work(source: Path, out: Path) -> None:
        with source.open() as lines:
            rows = [json.loads(line) for line in lines]
        made: list[dict[str, Any]] = []
        if name == "grpo":
            made = [
                {"input": prompt_of(one), "output": text_of(one),
                 "ground_truth": one.get("expected_answer")}
                for one in rows if (one.get("reward") or 0) >= 0.0
            ]  # fmt: skip
        elif name == "sft":
            made = [
                {"messages": [{"role": "user", "content": prompt_of(one)},
                              {"role": "assistant", "content": text_of(one)}]}
                for one in rows if (one.get("reward") or 0) >= 0.95
            ]  # fmt: skip
        else:
            groups: dict[str, list[dict[str, Any]]] = {}
            for one in rows:
                key = json.dumps(one["responses_create_params"]["input"], sort_keys=True)
                groups.setdefault(key, []).append(one)
            for group in groups.values():
                ranked = sorted(group, key=lambda one: one.get("reward") or 0)
                if (ranked[-1].get("reward") or 0) - (ranked[0].get("reward") or 0) >= 0.2:
                    made.append({"prompt": prompt_of(ranked[0]), "chosen": text_of(ranked[-1]),
                                 "rejected": text_of(ranked[0])})  # fmt: skip
        with out.open("w") as file:
            for record in made:
                file.write(json.dumps(record) + "\n")

    return work


WORK: dict[str, Callable[[Path, Path], None]] = {
    "floor": floor,
    **{name: ours(name) for name in MEASURED},
    **{f"script_{name}": script(name) for name in ("grpo", "sft", "dpo")},
}


def usage() -> tuple[resource.struct_rusage, resource.struct_rusage]:
    """Of this process, and of those it started that have ended."""
    return resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)


def cpu_time() -> float:
    """CPU seconds of all processes so far, to the microsecond (`os.times` counts in hundredths)."""
    return sum(one.ru_utime + one.ru_stime for one in usage())


def child(name: str, source: Path, out: Path) -> None:
    """Do one piece of work and print its figures; own imports are left out of the time."""
    workers = 0
    if not name.startswith(("floor", "script")):
        import rlbridge.transforms.dpo
        import rlbridge.transforms.grpo
        import rlbridge.transforms.sft  # noqa: F401
        from rlbridge.transforms.workers import worthwhile_workers

        workers = worthwhile_workers([source])
    started, before = time.perf_counter(), cpu_time()
    WORK[name](source, out)
    seconds, cpu_seconds = time.perf_counter() - started, cpu_time() - before
    own, largest = (one.ru_maxrss / 1000 for one in usage())  # kB on Linux
    peak = own + (largest * workers if workers > 1 else 0)
    figures = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak, "workers": workers}
    print(json.dumps(figures))


def measure(name: str, source: Path, folder: Path) -> dict[str, float]:
    """Do it in a process of its own; what it wrote is deleted."""
    out = folder / f"{name}.out.jsonl"
    command = [
        sys.executable,
        "-m",
        "benchmarks.transforms",
        "--child",
        name,
        str(source),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    for made in folder.glob(f"{name}.out*"):
        made.unlink()
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def take_turn(
    source: Path, folder: Path
) -> tuple[dict[str, dict[str, float]], list[dict[str, float]]]:
    """Each transform once, with the floor before and after; their figures, and the floors'."""
    found: dict[str, dict[str, float]] = {}
    floors = [measure("floor", source, folder)]
    for name in MEASURED:
        found[name] = measure(name, source, folder)
        floors.append(measure("floor", source, folder))
        # Against the floors right before and after it: the machine's other work comes and goes.
        for what, ratio in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
            found[name][ratio] = found[name][what] / (sum(one[what] for one in floors[-2:]) / 2)
    return found, floors


def run(count: int, folder: Path, rounds: int) -> dict[str, Any]:
    source, tenth = folder / "rollouts.jsonl", folder / "tenth.jsonl"
    write_rows(source, count)
    write_rows(tenth, count // 10)
    size = source.stat().st_size
    floor(source, folder / "warm.jsonl")  # the file is in the page cache for all alike
    (folder / "warm.jsonl").unlink()
    turns = [take_turn(source, folder) for _ in range(rounds)]
    floors = [one["seconds"] for _, turn_floors in turns for one in turn_floors]
    found = {
        name: {key: median(turn[name][key] for turn, _ in turns) for key in turns[0][0][name]}
        for name in MEASURED
    }
    for name in ("grpo", "sft", "dpo"):
        found[f"script_{name}"] = measure(f"script_{name}", tenth, folder)
    asked = ("grpo", "sft", "dpo")
    return {
        "ratio_to_floor": {name: round(found[name]["ratio"], 3) for name in asked},
        "cpu_ratio_to_floor": {name: round(found[name]["cpu_ratio"], 3) for name in asked},
        "workers": int(found["grpo"]["workers"]),
        "peak_mb": round(max(found[name]["peak_mb"] for name in asked), 1),
        "_rows": count,
        "_bytes": size,
        "_floor_rows_per_s": count / median(floors),
        "_found": found,
    }


def show(figures: dict[str, Any]) -> None:
    count = figures["_rows"]
    print(f"{count:,} rows, {figures['_bytes'] / 1e6:,.0f} MB, {os.cpu_count()} cores")
    print(f"{'':14}{'rows/s':>10}{'to floor':>10}{'CPU':>10}{'workers':>10}{'peak MB':>10}")
    print(f"{'floor':14}{figures['_floor_rows_per_s']:>10,.0f}{1:>10.2f}{1:>10.2f}")
    for name, one in figures["_found"].items():
        rows = count // 10 if name.startswith("script") else count
        ratio = f"{one['ratio']:>10.2f}{one['cpu_ratio']:>10.2f}" if "ratio" in one else " " * 20
        print(f"{name:14}{rows / one['seconds']:>10,.0f}{ratio}", end="")
        print(f"{one['workers'] or 1:>10}{one['peak_mb']:>10,.0f}")
    print("script_*: a tenth of the rows; sft_all: every scored row converted and kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="50,000 rows instead of 1,000,000")
    parser.add_argument("--folder", type=Path, help="where the files go, removed at the end")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, source, out = arguments.child
        child(name, Path(source), Path(out))
        return
    count, rounds = (50_000, 9) if arguments.quick else (1_000_000, 1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = run(count, Path(folder), rounds)
    if arguments.json:
        print(json.dumps({k: v for k, v in figures.items() if not k.startswith("_")}))
    else:
        show(figures)


if __name__ == "__main__":
    main()
