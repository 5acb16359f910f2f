"""Programs that don't close their client: `python left_open_script.py URL TRANSPORT WAY FOLDER`.

Each says `done` on stdout; what appears on stderr is what a user would see.
"""

import asyncio
import gc
import sys
import threading
import time

import psutil

from rlbridge.config import GymConfig
from rlbridge.gym import GymClient
from rlbridge.gym.sync import SyncGymClient
from rlbridge.testing import make_row

PATIENCE_S = 60
kept: list[object] = []


def connected(port: int) -> bool:
    found = psutil.Process().net_connections("tcp")
    return any(one.raddr and one.raddr.port == port for one in found)


async def verify(config: GymConfig) -> GymClient:
    client = GymClient(config)
    assert (await client.verify(make_row(), "7")).valid
    return client


def kept_to_the_end(config: GymConfig) -> None:
    kept.append(asyncio.run(verify(config)))


def used_in_one_loop_after_another(config: GymConfig) -> None:
    client = GymClient(config)
    for _ in range(3):
        assert asyncio.run(client.verify(make_row(), "7")).valid
    kept.append(client)


def on_a_thread_that_runs_on(config: GymConfig) -> None:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    kept.append(asyncio.run_coroutine_threadsafe(verify(config), loop).result(PATIENCE_S))


def dropped_while_its_loop_runs_on(config: GymConfig) -> None:
    async def main() -> None:
        client = await verify(config)
        port = int(config.url.rpartition(":")[2])
        assert connected(port)
        del client
        deadline = time.monotonic() + PATIENCE_S
        while connected(port):
            assert time.monotonic() < deadline, "its connection is still open"
            gc.collect()
            await asyncio.sleep(0.01)

    asyncio.run(main())


def dropped_on_another_thread(config: GymConfig) -> None:
    async def main() -> None:
        clients = [await verify(config)]
        port = int(config.url.rpartition(":")[2])
        assert connected(port)

        def drop() -> None:
            clients.clear()
            gc.collect()

        await asyncio.to_thread(drop)
        deadline = time.monotonic() + PATIENCE_S
        while connected(port):
            assert time.monotonic() < deadline, "its connection is still open"
            await asyncio.sleep(0.01)

    asyncio.run(main())


def a_shared_sync_client(config: GymConfig) -> None:
    assert SyncGymClient.shared(config).verify(make_row(), "7").valid


if __name__ == "__main__":
    url, transport, way, cache = sys.argv[1:]
    globals()[way](
        GymConfig.parse(
            {
                "url": url,
                "transport": transport,
                "deterministic": True,
                "cache": "sqlite",
                "cache_path": cache,
            }
        )
    )
    sys.stdout.write("done\n")
