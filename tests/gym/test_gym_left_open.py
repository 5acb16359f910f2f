"""A client that nobody closes: its program ends without a word, and a dropped one frees sockets."""

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlbridge.gym import GymClient
from rlbridge.testing import GymServer, make_row

SCRIPT = Path(__file__).with_name("left_open_script.py")
KEPT = (
    "kept_to_the_end",
    "used_in_one_loop_after_another",
    "on_a_thread_that_runs_on",
    "a_shared_sync_client",
)
DROPPED = ("dropped_while_its_loop_runs_on", "dropped_on_another_thread")


@pytest.mark.parametrize(
    ("transport", "way"),
    [
        *(("aiohttp", way) for way in (*KEPT, *DROPPED)),
        *(("httpx", way) for way in KEPT),  # it has no way to close without awaiting
    ],
)
async def test_a_client_that_nobody_closes_closes_itself_and_its_cache(
    gym_server: GymServer, transport: str, way: str, tmp_path: Path
) -> None:
    cache = tmp_path / "kept.sqlite"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), gym_server.url, transport, way, str(cache)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert (out.decode(), err.decode()) == ("done\n", "")
    assert process.returncode == 0
    with closing(sqlite3.connect(cache)) as db:
        assert db.execute("SELECT COUNT(*) FROM kept_rewards").fetchone() == (1,)


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
async def test_a_ray_actor_that_is_dropped_with_its_client_says_nothing(
    ray: Any, gym_server: GymServer, tmp_path: Path
) -> None:
    screen = tmp_path / "screen.txt"

    class Actor:  # as verl's reward workers: async, and nobody tells it of its end
        def __init__(self, client: GymClient) -> None:
            self.client = client

        async def verify(self) -> tuple[bool, int]:
            with screen.open("wb") as file:
                os.dup2(file.fileno(), 2)
            return (await self.client.verify(make_row(), "7")).valid, os.getpid()

    actor = ray.remote(num_cpus=0)(Actor).remote(GymClient(url=gym_server.url))
    valid, pid = await asyncio.to_thread(ray.get, actor.verify.remote(), timeout=120)
    assert valid
    process = psutil.Process(pid)
    del actor
    await asyncio.to_thread(process.wait, 60)
    said = screen.read_text()
    assert "aiohttp" not in said, said
