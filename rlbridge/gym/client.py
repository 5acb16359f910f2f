"""The client: rewards from a Gym server, or the reason why there is none.

A rollout's way through here: `verify` builds the body (`bodies`), looks whether the same
question is known or under way (`identity`, `caches`, `flights`), sends it (`calls`, through a
`transport`) and reads the answer (`replies`). Only a caller's mistake raises; whatever a server
or a row does wrong becomes an `InvalidReward`.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward
from rlbridge.contracts.wire import (
    ROUTE_AGGREGATE,
    ROUTE_LIVENESS,
    ROUTE_RUN,
    ROUTE_SEED,
    ROUTE_VERIFY,
    VERIFY_RESPONSES,
)
from rlbridge.errors import ContractError
from rlbridge.gym.bodies import row_body, to_json, unknown_params_of, verify_body
from rlbridge.gym.calls import Call, Reader
from rlbridge.gym.failures import START_ONE, gym_error, no_server_error
from rlbridge.gym.identity import request_key
from rlbridge.gym.replies import Failure, Reply, read_object, reward_in
from rlbridge.gym.runtime import Runtime, open_runtime
from rlbridge.gym.session import GymSession
from rlbridge.gym.stats import Stats

Row = Mapping[str, Any]
OnDone = Callable[[int, Reward], None]
Observer = Callable[[str, Reward], None]

_ALIVE_TIMEOUT_S = 2.0


class GymClient:
    """Async client of one reward server, which may have several URLs.

    Opens on first use, in whichever event loop runs then; used in another loop, or in a forked
    child, it opens anew there. Counters go on over all of them. What nobody closed closes when the
    client is collected, and at exit.

    Attributes:
        config: as given.
        stats: what was counted so far.
        observers: called with the route and each reward as it comes; must be quick.
    """

    def __init__(self, config: GymConfig | None = None, **fields: Any) -> None:
        """Take a config, or its fields: `GymClient(url="http://127.0.0.1:8000")`."""
        if config is not None and fields:
            raise ContractError("give GymClient a GymConfig or its fields, not both")
        self.config = GymConfig.parse(fields, where="GymClient") if config is None else config
        self.stats = Stats()
        self.observers: list[Observer] = []
        self._runtime: Runtime | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self.runtime()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[type[Self], tuple[GymConfig]]:
        """Pickles as its config: connections and counters stay where they are."""
        return type(self), (self.config,)

    async def aclose(self) -> None:
        """Close all connections; the client can't be used afterwards."""
        self._closed = True
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await runtime.aclose()

    async def check_alive(self, *, attempts: int = 3, advice: str = START_ONE) -> None:
        """Ask every URL's liveness route; any answer, even a 404, is a sign of life.

        Args:
            attempts: per URL.
            advice: what to do where nobody answers; ends the error's message.

        Raises:
            GymConnectionError: nobody listens at a URL.
            GymTimeoutError: somebody does, and doesn't answer within seconds.
        """
        runtime = self.runtime()
        timeout_s = min(self.config.verify_timeout_s, _ALIVE_TIMEOUT_S)
        for server in runtime.caller.servers:
            for attempt in range(1, attempts + 1):
                call = Call(ROUTE_LIVENESS, "liveness", None, timeout_s, server=server)
                outcome = await runtime.caller.probe(call, _answered)
                if type(outcome) is not Failure:
                    break
                if attempt == attempts:
                    raise no_server_error(outcome, server.shown, attempts, advice)
                await asyncio.sleep(self.config.backoff_initial_s * attempt)

    async def verify(self, row: Row, response: object) -> Reward:
        """The reward of `response` for `row`.

        Args:
            row: a dataset row as in Gym's JSONL; it is sent whole, token fields excepted.
            response: text, chat messages, Responses items, a chat completion or a whole
                Responses object; left unchanged.

        Returns:
            A `ValidReward` that a server computed, or an `InvalidReward` with the reason.

        Raises:
            ContractError: the row is no dict, the response nothing that could be judged, or
                one of them can't be written as JSON.
        """
        runtime, stats = self.runtime(), self.stats
        payload, key = self._question(row, response, keyed=runtime.shares)
        stats.verifies += 1
        if self.config.unknown_params == "refuse":
            refused = _refused_params(row)
            if refused is not None:
                return self._count(refused)
        call = Call(ROUTE_VERIFY, "verify", payload, self.config.verify_timeout_s)
        try:
            reward = await (runtime.once(key, call) if key else runtime.ask(call))
        except BaseException:
            stats.cancelled += 1
            raise
        return self._count(reward)

    def _question(self, row: Row, response: object, *, keyed: bool) -> tuple[bytes, bytes]:
        """The body of /verify, and its digest if wanted.

        A function of its own so that the body's dicts are gone while thousands of calls wait:
        every garbage collection would look at all of them.
        """
        body = verify_body(row, response, self.config.unknown_params)
        payload = to_json(body)
        return payload, request_key(self.config.url, body, payload) if keyed else b""

    async def verify_batch(
        self, pairs: Iterable[tuple[Row, object]], *, on_done: OnDone | None = None
    ) -> list[Reward]:
        """The rewards of (row, response) pairs, in their order.

        Args:
            pairs: consumed as slots come free; at most `max_concurrency` a URL are out.
            on_done: called with a pair's index and its reward, in order of completion.
        """
        todo = enumerate(pairs)
        rewards: dict[int, Reward] = {}

        async def work() -> None:
            for index, (row, response) in todo:
                reward = rewards[index] = await self.verify(row, response)
                if on_done is not None:
                    on_done(index, reward)

        width = self.config.max_concurrency * len(self.runtime().caller.servers)
        if isinstance(pairs, list | tuple):
            width = min(width, len(pairs))
        await _run_all(work() for _ in range(width))
        return [rewards[index] for index in range(len(rewards))]

    async def seed_session(self, row: Row) -> None:
        """Ask the server to seed a session and drop it: whether it accepts the row.

        A session that is to be used afterwards is `session(row)`.

        Raises:
            GymError: the branch says why.
        """
        call = Call(ROUTE_SEED, "seed_session", self._row_json(row), self.config.verify_timeout_s)
        await self._object(call)

    def session(self, row: Row) -> GymSession:
        """One rollout's session, to be entered with `async with`; see `GymSession`."""
        return GymSession(self, row)

    async def run(self, row: Row) -> tuple[Reward, dict[str, Any]]:
        """Let the agent at this URL run a whole rollout; never sent twice.

        Returns:
            Its reward, and the agent's full answer (empty if there was none). Don't take
            token data from a verifier's echo; an agent's answer has what its model server gave.
        """
        call = Call(ROUTE_RUN, "run", self._row_json(row), self.config.run_timeout_s, retried=False)
        answer: dict[str, Any] = {}

        def read(reply: Reply, attempts: int, latency_s: float) -> Reward | Failure:
            body = read_object(reply)
            if isinstance(body, Failure):
                return body
            answer.update(body)
            return reward_in(body, attempts, latency_s)

        outcome = await self.runtime().ask(call, read)
        for observer in self.observers:
            observer("run", outcome)
        return outcome, answer

    async def aggregate_metrics(self, verify_responses: list[Mapping[str, Any]]) -> dict[str, Any]:
        """The server's own metrics over rollouts.

        Args:
            verify_responses: verify answers, each with `_ng_task_index`, `_ng_rollout_index`
                and `reward`; bulky fields can be left out.

        Raises:
            GymError: the branch says why.
        """
        body = to_json({VERIFY_RESPONSES: verify_responses})
        call = Call(ROUTE_AGGREGATE, "aggregate_metrics", body, self.config.verify_timeout_s)
        return await self._object(call)

    async def get_json(self, route: str, reader: Callable[[Reply], Any]) -> Any:
        """GET `route` and give the answer to `reader`, which returns data or a `Failure`.

        Raises:
            GymError: the branch says why.
        """
        call = Call(route, route.strip("/"), None, self.config.verify_timeout_s)
        runtime = self.runtime()
        outcome = await runtime.caller.call(call, lambda reply, _a, _l: reader(reply))
        if type(outcome) is Failure:
            raise gym_error(outcome, runtime.caller.servers[0].shown + route, call.attempts)
        return outcome

    def runtime(self) -> Runtime:
        """What is open on the running loop; for `GymSession`."""
        loop = asyncio.get_running_loop()
        runtime = self._runtime
        if runtime is None or runtime.loop is not loop:
            if self._closed:
                raise ContractError("this GymClient is closed; make a new one")
            if runtime is not None:
                runtime.abandon()
            runtime = self._runtime = open_runtime(self.config, self.stats)
        return runtime

    async def verify_in_session(self, call: Call, read: Reader) -> Reward:
        """Verify with a session's cookies: never shared, never cached; for `GymSession`."""
        self.stats.verifies += 1
        try:
            reward = await self.runtime().ask(call, read)
        except BaseException:
            self.stats.cancelled += 1
            raise
        return self._count(reward)

    def _count(self, reward: Reward) -> Reward:
        if reward.valid:
            self.stats.valid += 1
        else:
            self.stats.invalid[reward.failure] += 1
        for observer in self.observers:
            observer("verify", reward)
        return reward

    def _row_json(self, row: Row) -> bytes:
        return to_json(row_body(row, self.config.unknown_params))

    async def _object(self, call: Call) -> dict[str, Any]:
        runtime = self.runtime()
        outcome = await runtime.caller.call(call, lambda reply, _a, _l: read_object(reply))
        if isinstance(outcome, Failure):
            url = runtime.caller.servers[0].shown + call.route
            raise gym_error(outcome, url, call.attempts)
        return outcome  # type: ignore[no-any-return]


def _refused_params(row: Row) -> InvalidReward | None:
    unknown = unknown_params_of(row)
    if not unknown:
        return None
    detail = f"$.responses_create_params: Gym doesn't know {', '.join(unknown)}; not asked"
    return InvalidReward(FailureClass.BAD_ROW, detail)


def _answered(reply: Reply, _attempts: int, _latency_s: float) -> int:
    return reply.status


async def _run_all(coroutines: Iterable[Any]) -> None:
    """Run all to their end; the first error cancels the rest and is raised bare."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
