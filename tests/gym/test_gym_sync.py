"""The client without `await`: in a running loop, over a fork, in a Ray actor."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rlbridge.config import GymConfig
from rlbridge.gym.sync import SyncGymClient
from rlbridge.testing import GymServer, make_row


async def test_parent_and_forked_child_both_verify_and_leak_nothing(
    gym_server: GymServer, transport: str
) -> None:
    script = Path(__file__).with_name("fork_script.py")
    # Python itself warns of every fork beside threads; all other warnings would be ours.
    strict = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *strict,
        str(script),
        gym_server.url,
        transport,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert err.decode() == ""
    assert process.returncode == 0
    told = ["parent, before", "child", "child, by what it inherited", "parent, after"]
    assert out.decode().splitlines() == told
    assert gym_server.behaviour.verifies == 8


def test_configs_that_differ_in_a_secret_share_no_client() -> None:
    one, other, same = (
        SyncGymClient.shared(GymConfig(headers={"Authorization": secret}))
        for secret in ("one", "other", "one")
    )
    assert one is not other
    assert one is same


@pytest.mark.verl
@pytest.mark.filterwarnings("ignore")
async def test_ray_actors_verify_in_plain_and_async_methods(
    ray: Any, gym_server: GymServer, quick_config: Any
) -> None:
    class Plain:
        def __init__(self, gym: SyncGymClient) -> None:
            self.gym = gym

        def verify(self, text: str) -> tuple[bool, int]:
            shared = SyncGymClient.shared(self.gym.config)
            assert SyncGymClient.shared(self.gym.config) is shared
            rewards = [gym.verify(make_row(), text) for gym in (self.gym, shared)]
            return all(reward.valid for reward in rewards), os.getpid()

    class Async(Plain):
        async def verify(self, text: str) -> tuple[bool, int]:  # type: ignore[override]
            assert asyncio.get_running_loop().is_running()
            return super().verify(text)

    gym = SyncGymClient(quick_config(gym_server.url))
    assert (await asyncio.to_thread(gym.verify, make_row(), "driver")).valid
    actors = [ray.remote(num_cpus=0)(kind).remote(gym) for kind in (Plain, Async)]
    try:
        asked = [actor.verify.remote(f"{n} {k}") for n, actor in enumerate(actors) for k in "ab"]
        answers = await asyncio.to_thread(ray.get, asked, timeout=120)
    finally:
        for actor in actors:
            ray.kill(actor)
    assert all(valid for valid, _pid in answers)
    assert len({pid for _valid, pid in answers} | {os.getpid()}) == 3
    assert gym_server.behaviour.verifies == 1 + 2 * 4
    await asyncio.to_thread(gym.close)
