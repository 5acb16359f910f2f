"""Spreads playing over a Ray cluster: workers play and hand rows back, the one writer stays here.

So the guarantees are those of a run on one machine: a worker that dies loses nothing but what it
was playing, which is played again. Needs Ray, and rlbridge installed on the cluster's machines.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from rlbridge.contracts.reward import Fault
from rlbridge.errors import ConfigError, RLBridgeError
from rlbridge.rollouts.config import PlayConfig
from rlbridge.rollouts.failures import RolloutFailure
from rlbridge.rollouts.opening import open_player
from rlbridge.rollouts.outcome import Outcome
from rlbridge.rollouts.player import Player
from rlbridge.rollouts.policy import LoadTokenizer
from rlbridge.rollouts.tasks import Task

_OPEN_TIMEOUT_S: Final = 300.0


class Worker:
    """What runs on the cluster: a player in a process of its own."""

    def __init__(
        self, config: PlayConfig, load_tokenizer: LoadTokenizer, concurrency: int, timeout_s: float
    ) -> None:
        self._stack = AsyncExitStack()
        self._opening = open_player(
            config, load_tokenizer, concurrency=concurrency, timeout_s=timeout_s
        )
        self._player: Player | None = None

    async def open(self) -> str | RLBridgeError:
        """Open the player; what it is, or why it can't be had."""
        try:
            self._player = await self._stack.enter_async_context(self._opening)
        except RLBridgeError as error:
            return error
        return self._player.words

    async def play(self, task: Task) -> Outcome:
        """Play one rollout."""
        if self._player is None:
            raise RuntimeError("a worker plays once it is open")
        return await self._player.play(task)

    async def close(self) -> None:
        """Close the player."""
        await self._stack.aclose()


class ClusterPlayer:
    """Plays on the worker with the least to do; replaces one that has died.

    Args:
        ray: the module.
        spawn: starts a worker and returns its handle.
        words: who plays.
        workers: handles of the workers that are open.
    """

    def __init__(self, ray: Any, spawn: Any, words: str, workers: list[Any]) -> None:
        self._ray = ray
        self._spawn = spawn
        self.words = words
        self._workers = workers
        self._playing = [0] * len(workers)
        self._replacing = asyncio.Lock()

    async def play(self, task: Task) -> Outcome:
        """One rollout on one worker; a worker that dies is an infrastructure failure."""
        slot = self._playing.index(min(self._playing))
        worker = self._workers[slot]
        self._playing[slot] += 1
        answer = worker.play.remote(task)
        try:
            outcome: Outcome = await answer
        except asyncio.CancelledError:
            self._ray.cancel(answer)
            raise
        except self._ray.exceptions.RayActorError as error:
            await self._replace(slot, worker)
            why = f"the worker died: {str(error).strip().splitlines()[0]}"
            failure = RolloutFailure("worker_died", Fault.INFRASTRUCTURE, why)
            return Outcome(dict(task.row), None, failure)
        finally:
            self._playing[slot] -= 1
        return outcome

    async def _replace(self, slot: int, dead: Any) -> None:
        async with self._replacing:
            if self._workers[slot] is dead:
                self._workers[slot], _ = await self._spawn()

    async def aclose(self) -> None:
        """End the workers."""
        for worker in self._workers:
            self._ray.kill(worker)


@asynccontextmanager
async def open_cluster_player(
    config: PlayConfig,
    load_tokenizer: LoadTokenizer,
    *,
    address: str,
    workers: int,
    concurrency: int,
    timeout_s: float,
) -> AsyncIterator[Player]:
    """A player spread over a Ray cluster; its workers are gone on leaving.

    Args:
        config: who plays, reachable from the cluster's machines.
        load_tokenizer: importable there, too.
        address: of the cluster; `auto` finds the one of this machine.
        workers: processes.
        concurrency: rollouts at once, all workers together.
        timeout_s: the longest a rollout may take, seconds.

    Raises:
        ConfigError: Ray isn't installed, or no cluster answers.
        RLBridgeError: a worker can't reach policy or environment.
    """
    ray = _connected(address)
    share = -(-concurrency // workers)
    remote = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=share + 1)(Worker)

    async def spawn() -> tuple[Any, str]:
        worker = remote.remote(config, load_tokenizer, share, timeout_s)
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            told = await worker.open.remote()
        if isinstance(told, RLBridgeError):
            raise told
        return worker, str(told)

    opened = await asyncio.gather(*(spawn() for _ in range(workers)))
    words = f"{opened[0][1]}, on {workers} Ray workers"
    player = ClusterPlayer(ray, spawn, words, [worker for worker, _ in opened])
    try:
        yield player
    finally:
        await player.aclose()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--ray needs Ray: pip install ray") from error
    if ray.is_initialized():
        return ray
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"no Ray cluster answers at {address}: {first}") from error
    return ray
