import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlbridge.rollouts.collect import Pace
from rlbridge.rollouts.config import PlayConfig
from rlbridge.rollouts.run import CollectRun
from rlbridge.testing import Behaviour, GymServer, make_response, make_row
from tests.json_lines import read_lines, write_lines

PYTHONPATH = os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])
pytestmark = pytest.mark.verl  # Ray comes with it


@pytest.fixture(scope="module")
def cluster() -> Any:
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": PYTHONPATH}},
    )
    yield ray
    ray.shutdown()


def no_tokenizer(name: str) -> Any:
    raise AssertionError(f"nobody needs the tokenizer of {name} here")


def agent_answer(_session: str, body: dict[str, Any]) -> dict[str, Any]:
    text = f"{body['_ng_task_index']}/{body['_ng_rollout_index']}"
    return {**body, "response": make_response(text), "reward": 1.0}


@pytest.mark.filterwarnings("ignore")  # Ray's own
async def test_workers_of_a_cluster_play_and_one_that_dies_costs_no_row(
    cluster: Any, tmp_path: Path
) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", (make_row(f"task {n}") for n in range(60)))
    killed: list[int] = []

    def answer(session: str, body: dict[str, Any]) -> dict[str, Any]:
        if body["_ng_task_index"] == 20 and not killed:
            killed.append(one_worker())
            os.kill(killed[0], signal.SIGKILL)
        return agent_answer(session, body)

    async with GymServer(Behaviour(tools={"run": answer}), delay_s=0.01) as server:
        run = CollectRun(
            PlayConfig(agent=server.url),
            no_tokenizer,
            Pace(concurrency=8, attempts=5, backoff_s=0.01, timeout_s=60.0),
            rows,
            tmp_path / "out.jsonl",
            Console(quiet=True),
            repeats=2,
            ordered=True,
            ray="auto",
            ray_workers=2,
        )
        summary = await run.execute()
    assert killed
    assert summary["failed"] == {}
    found = read_lines(tmp_path / "out.jsonl")
    indices = [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in found]
    assert indices == [(task, repeat) for task in range(60) for repeat in range(2)]


def one_worker() -> int:
    """The process of one worker."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.NoSuchProcess):  # another one that ended meanwhile
            ours = os.getpid() in {parent.pid for parent in process.parents()}
            if ours and "ray::Worker" in " ".join(process.info["cmdline"] or ()):
                return process.pid
    raise AssertionError("no worker runs")
