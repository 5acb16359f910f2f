"""Where a verl run's start goes, before and after: `python -m benchmarks.startup`.

Trains one step of the demo twice in the same session, one after the other:

- before: verl's own `main_ppo` with the settings a first CPU run needs (trainer in an actor of
  its own, torch.compile where vLLM wants it, verl's replay buffer);
- after: what `rlbridge run` starts.

Prints seconds and CPU seconds until the first step ended, processes, peak memory, and the ratio.
`--quick` is the same with fewer samples; `--json` prints figures for programs.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from rlbridge.launch import processes
from rlbridge.launch.run import start_gym
from rlbridge.run_config import load_run_config
from rlbridge_verl.backend import VerlBackend

LIMIT_S = 900.0


def compiled(folder: Path, url: str, samples: int) -> Any:
    """The demo's first step, compiled for verl."""
    config = load_run_config(
        Path("examples/demo.yaml"),
        [
            f"gym.url={url}",
            "gym.serve=null",
            "trainer.steps=1",
            f"trainer.output_dir={folder}",
            f"rollout.samples_per_prompt={samples}",
        ],
    )
    return VerlBackend().compile(config, folder)


def before(native: Any) -> tuple[list[str], dict[str, str]]:
    """Verl's own entry point and buffer, and no word about compiling."""
    overrides = [part for part in native.argv[3:] if "sampler" not in part]
    environment = {k: v for k, v in native.env.items() if k != "TORCHDYNAMO_DISABLE"}
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides], environment


def measure(argv: list[str], env: dict[str, str], metrics: Path, log: Path) -> dict[str, Any]:
    """Run to the first step's metrics, then end it; wall, CPU, processes, memory."""
    started = time.monotonic()
    with processes.nothing_left_behind():
        driver = processes.start(argv, log=log, env=env)
        watch = processes.ComponentWatch(driver.pid, ())
        cpu: dict[int, float] = {}
        first_step = None
        while time.monotonic() - started < LIMIT_S:
            watch.poll()
            for process in psutil.Process().children(recursive=True):
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                cpu[process.pid] = times.user + times.system
            if first_step is None and metrics.exists() and metrics.read_bytes().count(b"\n"):
                first_step = time.monotonic() - started
                break
            if driver.poll() is not None:
                sys.exit(f"the run ended early; see {log}:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
    if first_step is None:
        sys.exit(f"no step within {LIMIT_S:.0f} s; see {log}")
    return {
        "first_step_s": round(first_step, 1),
        "cpu_s": round(sum(cpu.values()), 1),
        "python_processes": sum(seconds > 1.0 for seconds in cpu.values()),
        "peak_mb": round(watch.peak_mb),
    }


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples in the step")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    if not Path("runs/demo/policy").exists():
        sys.exit("make the demo's policy first: python examples/tiny_policy.py --output runs/demo")
    processes.adopt_orphans()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, processes.nothing_left_behind():
        url = start_gym("arithmetic", Path(scratch))
        for name in ("before", "after"):
            folder = Path(scratch) / name
            folder.mkdir()
            native = compiled(folder, url, 2 if arguments.quick else 8)
            argv, env = before(native) if name == "before" else (native.argv, dict(native.env))
            results[name] = measure(argv, env, native.metrics_path, folder / "train.log")
            events = folder / "events.jsonl"
            if events.exists():
                lines = [json.loads(line) for line in events.read_text().splitlines()]
                results[name]["phases_s"] = {x["event"]: x["after_s"] for x in lines}
    results["ratio"] = round(
        results["before"]["first_step_s"] / results["after"]["first_step_s"], 2
    )
    results["cpu_ratio"] = round(results["before"]["cpu_s"] / results["after"]["cpu_s"], 2)
    if arguments.json:
        print(json.dumps(results))
        return
    for name in ("before", "after"):
        print(f"{name:>7}: " + ", ".join(f"{k} {v}" for k, v in results[name].items()))
    print(f"before / after: {results['ratio']} in seconds, {results['cpu_ratio']} in CPU seconds")
    print(f"({os.cpu_count()} cores)")


if __name__ == "__main__":
    main()
