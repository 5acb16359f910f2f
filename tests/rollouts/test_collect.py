import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlbridge.errors import ConfigError, GymConnectionError, RunError
from rlbridge.rollouts.collect import Pace
from rlbridge.rollouts.config import PlayConfig
from rlbridge.rollouts.run import CollectRun
from rlbridge.rollouts.store import failures_path
from rlbridge.testing import Behaviour, FaultKind, Faults, GymServer, make_response, make_row
from tests.json_lines import read_lines, write_lines


def no_tokenizer(name: str) -> Any:
    raise AssertionError(f"nobody needs the tokenizer of {name} here")


QUICK = Pace(concurrency=8, attempts=3, backoff_s=0.001, timeout_s=120.0)


def agent_answer(_session: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the agent says follows from the row and the repeat alone."""
    task, rollout = body["_ng_task_index"], body["_ng_rollout_index"]
    response = make_response(f"{task}/{rollout} " + "x" * (task % 60))
    return {**body, "response": response, "reward": (task + rollout) % 3 / 2, "judged": task}


def agent(**fields: Any) -> Behaviour:
    return Behaviour(tools={"run": agent_answer}, faulty_routes=("/run",), **fields)


def write_rows(path: Path, count: int) -> Path:
    rows = [make_row(f"task {n}", expected_answer=str(n)) for n in range(count)]
    return write_lines(path, rows)


def index_of(row: dict[str, Any]) -> tuple[int, int]:
    return row["_ng_task_index"], row["_ng_rollout_index"]


class Runs:
    """Collections over one input, into one output, against one agent."""

    def __init__(self, folder: Path, url: str, rows: int = 20) -> None:
        self.url = url
        self.source = write_rows(folder / "rows.jsonl", rows)
        self.output = folder / "out.jsonl"
        self.said = ""

    async def run(self, pace: Pace = QUICK, **options: Any) -> dict[str, Any]:
        console = Console(file=(self.output.parent / "said.txt").open("a"), width=200)
        try:
            play = PlayConfig(agent=self.url)
            run = CollectRun(play, no_tokenizer, pace, self.source, self.output, console, **options)
            return await run.execute()
        finally:
            console.file.close()
            self.said = (self.output.parent / "said.txt").read_text()


async def test_rows_have_gyms_form_and_every_repeat_is_there_once(tmp_path: Path) -> None:
    async with GymServer(agent()) as server:
        runs = Runs(tmp_path, server.url)
        summary = await runs.run(repeats=3, ordered=True)
    assert summary["done"] == summary["total"] == 60
    assert summary["failed"] == {}
    rows = read_lines(runs.output)
    assert [index_of(row) for row in rows] == [(t, r) for t in range(20) for r in range(3)]
    row = rows[7]
    assert row["response"]["output"][0]["content"][0]["text"].startswith("2/1 ")
    assert (row["reward"], row["expected_answer"], row["judged"]) == (0.0, "2", 2)
    assert row["responses_create_params"]["input"][0]["content"] == "task 2"
    assert row["agent_ref"] == {"name": "rlbridge"}
    assert not failures_path(runs.output).exists()


async def test_the_same_command_again_asks_for_nothing_that_is_done(tmp_path: Path) -> None:
    async with GymServer(agent()) as server:
        runs = Runs(tmp_path, server.url)
        await runs.run()
        asked = len(server.behaviour.requests)
        summary = await runs.run()
        assert len(server.behaviour.requests) == asked
    assert summary["done"] == summary["done_before"] == 20


async def test_an_invalid_reward_is_a_failure_with_its_reason_and_never_a_row(
    tmp_path: Path,
) -> None:
    faults = Faults(script=[FaultKind.NAN, FaultKind.MISSING_REWARD, FaultKind.STATUS_422])
    async with GymServer(agent(faults=faults)) as server:
        runs = Runs(tmp_path, server.url)
        summary = await runs.run(Pace(1, 1, timeout_s=120.0))
        assert summary["failed"] == {"non_finite": 1, "missing_reward": 1, "bad_row": 1}
        failures = read_lines(failures_path(runs.output))
        assert [index_of(row) for row in failures] == [(0, 0), (1, 0), (2, 0)]
        assert all("reward" not in row for row in failures)
        assert failures[0]["_ng_failure_class"] == "non_finite"
        assert failures[0]["response"]["output"]  # it can be scored again without inference
        assert failures[2]["_ng_failure_terminal"] is True
        assert "expected_answer" in failures[2]["_rlbridge_failure_detail"]
        again = await runs.run()
        assert again["done"] == 17
        assert "3 that failed earlier were left alone; --retry-failed" in runs.said
        last = await runs.run(retry_failed=True)
    assert last["done"] == 20
    assert not failures_path(runs.output).exists()
    assert sorted(index_of(row) for row in read_lines(runs.output)) == [(n, 0) for n in range(20)]


async def test_what_infrastructure_fails_is_tried_again_and_the_tries_are_counted(
    tmp_path: Path,
) -> None:
    always = Faults(rate=1.0, kinds=[FaultKind.STATUS_500])
    async with GymServer(agent(faults=always)) as server:
        runs = Runs(tmp_path, server.url, rows=2)
        first = await runs.run(Pace(1, 3, backoff_s=0.001))
        assert (first["failed"], first["retries"]) == ({"server_error": 2}, 4)
        await runs.run(Pace(1, 3, backoff_s=0.001), retry_failed=True)
        attempts = [row["_rlbridge_attempts"] for row in read_lines(failures_path(runs.output))]
        assert attempts == [6, 6]
        server.behaviour.faults = Faults(rate=0.4, kinds=[FaultKind.STATUS_500, FaultKind.RESET])
        last = await runs.run(Pace(2, 50, backoff_s=0.001), retry_failed=True)
    assert last["done"] == 2


async def test_many_failures_in_a_row_end_the_run_with_what_to_do(tmp_path: Path) -> None:
    always = Faults(rate=1.0, kinds=[FaultKind.STATUS_500])
    async with GymServer(agent(faults=always)) as server:
        runs = Runs(tmp_path, server.url, rows=50)
        with pytest.raises(RunError, match=r"5 rollouts in a row failed.*--retry-failed"):
            await runs.run(Pace(2, 1, give_up_after=5))
        assert len(read_lines(failures_path(runs.output))) < 10
        server.behaviour.faults = Faults()
        assert (await runs.run(retry_failed=True))["done"] == 50


async def test_a_rollout_that_never_ends_fails_at_its_deadline(tmp_path: Path) -> None:
    slow = Faults(script=[FaultKind.SLOW])
    async with GymServer(agent(faults=slow)) as server:
        runs = Runs(tmp_path, server.url, rows=3)
        summary = await runs.run(Pace(1, 1, timeout_s=0.3))
        assert summary["failed"]  # one, or more on a busy machine
        assert set(summary["failed"]) <= {"rollout_timeout", "timeout"}
        assert summary["done"] + sum(summary["failed"].values()) == 3
        assert (await runs.run(retry_failed=True))["done"] == 3


async def test_bad_input_and_absent_servers_are_told_before_anything_is_written(
    tmp_path: Path,
) -> None:
    runs = Runs(tmp_path, "http://127.0.0.1:9", rows=3)
    with pytest.raises(GymConnectionError):
        await runs.run()
    runs.source.write_text('{"responses_create_params": {"input": "a"}}\n{"input": "b"}\n')
    with pytest.raises(ConfigError, match=r"rows.jsonl:2.*responses_create_params.input"):
        await runs.run(accept_changes=True)
    rounded = {"responses_create_params": {"input": "b"}, "truth": {"id": 2**64}}
    write_lines(runs.source, [make_row("a"), rounded])
    with pytest.raises(
        ConfigError, match=r"rows.jsonl:2: \$.truth.id is an integer beyond 64 bits"
    ):
        await runs.run()
    runs.source.write_text('{"responses_create_params": {"inp\n')
    with pytest.raises(ConfigError, match="not JSON"):
        await runs.run()
    runs.source.write_text("\n")
    with pytest.raises(ConfigError, match="holds no rows"):
        await runs.run()


async def test_a_changed_input_is_refused_by_name(tmp_path: Path) -> None:
    async with GymServer(agent()) as server:
        runs = Runs(tmp_path, server.url)
        await runs.run()
        write_rows(runs.source, 21)
        with pytest.raises(ConfigError, match=r"input_sha256 was .*rows was 20 and is 21"):
            await runs.run()
        assert (await runs.run(accept_changes=True))["done"] == 21


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "who plays?"),
        ({"agent": "http://a", "policy": "http://b"}, "who plays?"),
        ({"policy": "http://b"}, "who judges?"),
        ({"agent": "http://a", "gym": "http://b"}, "its own tools and verdicts"),
    ],
)
def test_a_command_that_lacks_a_part_says_which(fields: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        PlayConfig.parse(fields)


SERVE = """
import asyncio, sys
sys.path.insert(0, "tests/rollouts")
from test_collect import agent
from rlbridge.testing import FaultKind, Faults, GymServer
kinds = [FaultKind.STATUS_500, FaultKind.STATUS_503, FaultKind.RESET, FaultKind.RESET_MID_BODY,
         FaultKind.TRUNCATED_JSON]
async def main():
    async with GymServer(agent(faults=Faults(rate=0.1, kinds=kinds, seed=1)), delay_s=0.002) as s:
        print(s.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@contextmanager
def flaky_agent() -> Iterator[str]:
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


@contextmanager
def collecting(url: str, source: Path, output: Path) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "rlbridge", "rollouts", "collect", "--agent", url]
    command += ["--input", str(source), "--output", str(output), "--repeats", "2", "--ordered"]
    command += ["--attempts", "20", "--concurrency", "8"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process


def wait_for_growth(process: "subprocess.Popen[str]", path: Path, grown: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_size > grown:
            return
        time.sleep(0.002)


def test_kill_minus_nine_at_any_moment_loses_no_row_and_doubles_none(tmp_path: Path) -> None:
    source, chance = write_rows(tmp_path / "rows.jsonl", 100), random.Random(5)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    index = tmp_path / "killed.jsonl.index"
    with flaky_agent() as url:
        with collecting(url, source, whole) as run:
            said = run.communicate(timeout=300)[0]
            assert run.returncode == 0, said
        for _ in range(3):
            grown = index.stat().st_size if index.exists() else 0
            with collecting(url, source, killed) as run:
                wait_for_growth(run, index, grown)
                time.sleep(chance.uniform(0, 0.05))
                run.send_signal(signal.SIGKILL)
        with collecting(url, source, killed) as run:
            said = run.communicate(timeout=300)[0]
            assert run.returncode == 0, said
    assert "of them before" in said
    assert killed.read_bytes() == whole.read_bytes()
    assert len(read_lines(killed)) == 200


def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "rows.jsonl", 3000), tmp_path / "out.jsonl"
    with flaky_agent() as url, collecting(url, source, output) as run:
        wait_for_growth(run, tmp_path / "out.jsonl.index", 0)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=300)[0]
    assert run.returncode == 130, said
    assert "the same command goes on with it" in said
    assert "Traceback" not in said
    assert read_lines(output)
