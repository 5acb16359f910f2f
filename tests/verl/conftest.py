"""Real training runs: a tiny policy, the `rlbridge` command, and Gym servers as processes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from benchmarks.engine import free_port
from tests.json_lines import read_lines

TINY = [
    "trainer.device=cpu",
    "data.max_prompt_tokens=64",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "rollout.max_response_tokens=8",
    "algorithm.learning_rate=1e-4",
]
GROUP = 4
A_STEP = 16
RUN_TIMEOUT_S = 900


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left_running() -> Iterator[None]:
    """Ray starts itself when it is asked for anything: on every interface, and for all tests."""
    yield
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), "a test of this module left Ray running"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `policy/` and `data/`; hardly warmed up, since nobody looks at its answers."""
    folder = tmp_path_factory.mktemp("tiny")
    command = [sys.executable, "examples/tiny_policy.py", "--output", str(folder)]
    subprocess.run([*command, "--warm-up-steps", "30"], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy that calls tools, and rows for two of NeMo Gym's environments."""
    folder = tmp_path_factory.mktemp("counter")
    command = [sys.executable, "examples/counter_policy.py", "--output", str(folder)]
    # With three numbers even chance is right in a ninth of the rollouts.
    small = ["--warm-up-steps", "250", "--largest", "3"]
    subprocess.run([*command, *small], check=True, timeout=600)
    return folder


class TrainingRun:
    """`rlbridge run` as a user starts it, in the background."""

    def __init__(self, folder: Path, made: Path, *arguments: str) -> None:
        self.output = folder / "out"
        config = folder / "run.yaml"
        data = {"policy": {"path": str(made / "policy")}, "data": {"train": str(folder / "rows")}}
        config.write_text(json.dumps(data))
        self._log = (folder / "screen.txt").open("ab")
        self._screen = folder / "screen.txt"
        command = [sys.executable, "-m", "rlbridge", "run", "--config", str(config)]
        overrides = [*TINY, f"trainer.output_dir={self.output}", *arguments]
        self.process = subprocess.Popen(
            [*command, *overrides], stdout=self._log, stderr=subprocess.STDOUT
        )
        self._family: dict[int, psutil.Process] = {}

    @property
    def screen(self) -> str:
        """What the user has seen so far."""
        return self._screen.read_text(errors="replace")

    def steps(self) -> int:
        path = self.output / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while time.monotonic() < deadline:
            self._remember_family()
            found = what()
            if found:
                return found
            assert self.process.poll() is None, self.screen
            time.sleep(0.3)
        raise AssertionError(f"waited in vain; the screen:\n{self.screen}")

    def _remember_family(self) -> None:
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self._family.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass

    def component(self, name: str) -> psutil.Process | None:
        for child in self._family.values():
            try:
                if name in " ".join(child.cmdline()):
                    return child
            except psutil.Error:
                continue
        return None

    def listening_beyond_loopback(self) -> list[str]:
        """Sockets of the run that somebody else on the network could reach."""
        found = []
        for child in self._family.values():
            try:
                connections = child.net_connections("tcp")
                name = child.name()
            except psutil.Error:
                continue
            for one in connections:
                ip = one.laddr.ip.removeprefix("::ffff:") if one.laddr else ""
                if one.status == psutil.CONN_LISTEN and not ip.startswith("127.") and ip != "::1":
                    found.append(f"{name} {one.laddr}")
        return found

    def wait(self, patience_s: float = 0.0) -> int:
        """The exit status; asserts that no process of the run outlived it by `patience_s`."""
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self._remember_family()
            time.sleep(0.3)
        assert self.process.poll() is not None, "the run did not end"
        _, orphans = psutil.wait_procs(list(self._family.values()), timeout=patience_s)
        assert [one for one in orphans if _lives(one)] == []
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=120)
        self._log.close()

    def summary(self) -> dict[str, Any]:
        return orjson.loads((self.output / "summary.json").read_bytes())

    def native(self) -> list[dict[str, Any]]:
        """verl's own metrics, a mapping a step."""
        return [line["data"] for line in read_lines(self.output / "verl_metrics.jsonl")]

    def rewards(self) -> list[dict[str, Any]]:
        files = sorted((self.output / "rewards").glob("*.jsonl"))
        return [outcome for path in files for outcome in read_lines(path)]


def _lives(process: psutil.Process) -> bool:
    """Whether it does anything: one that has ended may wait for somebody to ask how."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def training(tmp_path: Path, tiny: Path) -> Iterator[Callable[..., TrainingRun]]:
    """Start runs in `tmp_path`; write the rows to `tmp_path / "rows"` first."""
    runs: list[TrainingRun] = []

    def start(*arguments: str, policy: Path = tiny) -> TrainingRun:
        runs.append(TrainingRun(tmp_path, policy, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


class GymProcess:
    """`rlbridge gym serve arithmetic` on a fixed port, to be killed and started again."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "rlbridge", "gym", "serve", "arithmetic"]
        self._process = subprocess.Popen(
            [*command, "--port", str(self._port), "--exit-with-parent"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        assert b"http" in self._process.stdout.readline()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=60)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@pytest.fixture
def gym() -> Iterator[GymProcess]:
    server = GymProcess()
    server.start()
    yield server
    server.kill()
