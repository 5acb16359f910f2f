"""One call and all its attempts: slots, deadlines, breaker, retries. Refuses to wait for ever.

The first attempt runs bare; tenacity enters only when it failed, so that a call that succeeds
pays for no retry machinery. A call holds no slot while it waits between attempts.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic as time
from typing import Any, Final

from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_random

from rlbridge.config import GymConfig
from rlbridge.contracts.reward import FailureClass
from rlbridge.gym.breaker import ServerDownError
from rlbridge.gym.limiter import QueueTimeoutError
from rlbridge.gym.replies import Failure, Reply
from rlbridge.gym.servers import Server, least_loaded
from rlbridge.gym.stats import Stats
from rlbridge.gym.transport import BrokenReplyError, Transport, TransportError

log = logging.getLogger("rlbridge.gym")

# (reply, attempts, seconds since the call began) -> the result, or why there is none.
Reader = Callable[[Reply, int, float], Any]

# Statuses that say the server, or the way to it, is down; a 500 comes from a live server.
_DOWN_STATUSES: Final = frozenset({502, 503, 504})


@dataclass(slots=True)
class Call:
    """What to send where.

    Attributes:
        route: the path, for tools with their name in it.
        label: the route's name in metrics; bounded, where tool names are not.
        body: JSON, or None for a GET.
        timeout_s: deadline of one attempt.
        retried: whether sending it twice is safe.
        server: the one that must be asked, or None for any.
        headers: beside the usual ones: the session's cookies.
        attempts: how many were made so far.
        queued_s: seconds spent in our own queues, which no budget counts.
        broken: a connection ended before its answer; what happened at the other end is unknown.
    """

    route: str
    label: str
    body: bytes | None
    timeout_s: float
    retried: bool = True
    server: Server | None = None
    headers: Mapping[str, str] | None = None
    attempts: int = 0
    queued_s: float = 0.0
    broken: bool = False


class Caller:
    """Sends calls to the servers of one client on one event loop."""

    def __init__(
        self, config: GymConfig, transport: Transport, servers: Sequence[Server], stats: Stats
    ) -> None:
        self._config = config
        self._transport = transport
        self._stats = stats
        self._backoff = wait_exponential(
            multiplier=config.backoff_initial_s, max=config.backoff_max_s
        ) + wait_random(0, config.backoff_initial_s)
        self.servers = servers

    async def call(self, call: Call, read: Reader) -> Any:
        """The result that `read` makes of the answer, or the last `Failure`."""
        began = time()
        outcome = await self._attempt(call, read, began)
        if type(outcome) is not Failure or not call.retried or not outcome.retryable:
            return outcome
        return await self._retry(call, read, began, outcome)

    async def probe(self, call: Call, read: Reader) -> Any:
        """One attempt past breaker and limiter, and uncounted: for liveness checks."""
        server = call.server or self.servers[0]
        url, began = server.url + call.route, time()
        try:
            reply = await self._transport.send("GET", url, None, None, call.timeout_s)
        except (TransportError, TimeoutError) as error:
            return _failure(error, call, server)
        return read(reply, 1, time() - began)

    async def _retry(self, call: Call, read: Reader, began: float, first: Failure) -> Any:
        pending: Failure | None = first

        async def attempt() -> Any:
            nonlocal pending
            if pending is not None:  # made already; tenacity computes the wait that follows
                outcome, pending = pending, None
                return outcome
            self._stats.retries += 1
            return await self._attempt(call, read, began)

        retrying = AsyncRetrying(
            sleep=asyncio.sleep,
            retry=lambda state: _retryable(_result(state)),
            stop=lambda state: not self._may_retry(_result(state), call, began, state),
            wait=self._wait_s,
            retry_error_callback=_result,  # the last failure as it is
        )
        outcome: Any = await retrying(attempt)
        if type(outcome) is Failure:
            if outcome.failure is FailureClass.UNAVAILABLE:
                outcome = first  # what really happened, before it wasn't asked any more
            self._log_given_up(call, outcome)
        return outcome

    def _wait_s(self, state: RetryCallState) -> float:
        """The wait before the next attempt: exponential with jitter, or as the server asked."""
        failure: Failure = _result(state)
        if failure.retry_after_s is None:
            return self._backoff(state)
        # Jitter upwards only: the server named the earliest moment.
        jitter = random.uniform(0, self._config.backoff_initial_s)  # noqa: S311
        return failure.retry_after_s + jitter

    def _may_retry(self, failure: Failure, call: Call, began: float, state: RetryCallState) -> bool:
        """Whether attempts and time are left for another attempt after its wait."""
        config, now = self._config, time()
        if call.attempts >= config.max_attempts and not self._outlasts(failure, call, now):
            return False
        return now + state.upcoming_sleep < began + call.queued_s + config.total_timeout_s

    def _outlasts(self, failure: Failure, call: Call, now: float) -> bool:
        """Attempts that reached nobody don't count while the outage is young."""
        if failure.reached:
            return False
        servers = self.servers if call.server is None else (call.server,)
        return any(server.breaker.patient(now) for server in servers)

    async def _attempt(self, call: Call, read: Reader, began: float) -> Any:
        server = call.server or least_loaded(self.servers, time)
        probe = False
        if server.breaker.failing_since is not None or not server.limiter.try_acquire():
            asked = time()
            try:
                probe = await self._enter(server)
            except (ServerDownError, QueueTimeoutError) as error:
                return self._not_asked(server, error)
            finally:
                call.queued_s += time() - asked
        call.attempts += 1
        stats = self._stats
        stats.attempts[call.label] += 1
        stats.in_flight += 1
        outcome = None
        sent = time()
        try:
            reply = await self._transport.send(
                "GET" if call.body is None else "POST",
                server.url + call.route,
                call.body,
                call.headers,
                call.timeout_s,
            )
            outcome = read(reply, call.attempts, time() - began)
        except (TransportError, TimeoutError) as error:
            outcome = _failure(error, call, server)
        finally:
            now = time()
            stats.in_flight -= 1
            if outcome is not None:
                stats.latency.record(now - sent)
                self._learn(server, outcome, sent, now, probe=probe)
            elif probe:  # cancelled
                server.breaker.probe_dropped(now)
            server.limiter.release()
        return outcome

    def _not_asked(self, server: Server, error: ServerDownError | QueueTimeoutError) -> Failure:
        if isinstance(error, ServerDownError):
            detail = f"{server.shown} is down; not asked"
            return Failure(FailureClass.UNAVAILABLE, detail, reached=False)
        detail = f"waited {self._config.queue_timeout_s:g} s in the queue; not asked"
        return Failure(FailureClass.TIMEOUT, detail, reached=False, final=True)

    async def _enter(self, server: Server) -> bool:
        """Wait for the breaker and for a slot; True if this call is a probe."""
        while True:
            probe = await server.breaker.admit()
            try:
                if not server.limiter.try_acquire():
                    await server.limiter.acquire()
            except BaseException:
                if probe:
                    server.breaker.probe_dropped(time())
                raise
            if probe or server.breaker.state == "closed":
                return probe
            server.limiter.release()  # it went down while we waited in line

    def _learn(self, server: Server, outcome: Any, sent: float, now: float, *, probe: bool) -> None:
        """Tell the breaker, the limiter and the counters how an attempt went."""
        if type(outcome) is not Failure:
            server.limiter.answered()
            _answered(server)
            return
        kind = outcome.failure
        self._stats.failures[kind] += 1
        opened = server.breaker.opened
        late = kind is FailureClass.TIMEOUT or outcome.status in _DOWN_STATUSES
        if late or kind is FailureClass.RATE_LIMITED:
            server.limiter.overloaded(sent, now)
        if late or kind is FailureClass.CONNECTION:
            server.breaker.failed(now, probe=probe)
            if server.breaker.opened > opened:
                log.warning("gym server is down", extra={"gym_url": server.shown})
        else:
            _answered(server)

    def _log_given_up(self, call: Call, failure: Failure) -> None:
        log.info(
            "gym call failed",
            extra={
                "gym_route": call.label,
                "gym_failure": str(failure.failure),
                "gym_status": failure.status,
                "gym_attempts": call.attempts,
            },
        )


def _answered(server: Server) -> None:
    if server.breaker.state != "closed":
        log.warning("gym server is up again", extra={"gym_url": server.shown})
    server.breaker.succeeded()


def _failure(error: TransportError | TimeoutError, call: Call, server: Server) -> Failure:
    if isinstance(error, TimeoutError):
        detail = f"no answer from {server.shown}{call.route} within {call.timeout_s:g} s"
        return Failure(FailureClass.TIMEOUT, detail)
    if isinstance(error, BrokenReplyError):
        return Failure(FailureClass.MALFORMED_BODY, str(error))
    call.broken = True
    if error.refused:
        server.epoch += 1
    detail = f"{server.shown}{call.route}: {error}"
    return Failure(FailureClass.CONNECTION, detail, reached=error.reached)


def _result(state: RetryCallState) -> Any:
    return None if state.outcome is None else state.outcome.result()


def _retryable(outcome: Any) -> bool:
    return type(outcome) is Failure and outcome.retryable
