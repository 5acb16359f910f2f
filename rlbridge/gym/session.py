"""One rollout's session: seed, tools, verify, all at one server and with one cookie jar."""

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from rlbridge.contracts.reward import FailureClass, Reward
from rlbridge.contracts.wire import ROUTE_SEED, ROUTE_VERIFY
from rlbridge.errors import ContractError
from rlbridge.gym.bodies import row_body, to_json, verify_body
from rlbridge.gym.calls import Call, Reader
from rlbridge.gym.cookies import Jar
from rlbridge.gym.failures import gym_error
from rlbridge.gym.replies import Failure, Reply, read_json, read_object, read_reward
from rlbridge.gym.servers import least_loaded

if TYPE_CHECKING:
    from rlbridge.gym.client import GymClient


class GymSession:
    """A seeded session. Enter it with `async with`; there is nothing to close on the wire.

    Sticks to one URL, for servers keep sessions in memory. A session that was lost (its cookie
    dropped or swapped on the way, its server gone in between) is never scored.
    """

    def __init__(self, client: "GymClient", row: Mapping[str, Any]) -> None:
        config = client.config
        self._client = client
        self._config = config
        self._row = row
        self._jar = Jar(required=config.session_cookie == "required")
        self._server: Any = None
        self._epoch: int | None = None  # the server's when the session was seeded

    @property
    def lost(self) -> str:
        """Why the session can't be trusted any more, or empty."""
        if self._jar.lost or self._epoch is None:
            return self._jar.lost
        if self._server.epoch != self._epoch:
            return f"{self._server.shown} was down since the session was seeded; its state is gone"
        return ""

    async def __aenter__(self) -> Self:
        """Seed the session.

        Raises:
            GymError: the server can't or won't; the branch says why.
        """
        caller = self._client.runtime().caller
        self._server = least_loaded(caller.servers, monotonic)
        body = to_json(row_body(self._row, self._config.unknown_params))
        await self._call(self._made(ROUTE_SEED, "seed_session", body), read_object)
        self._epoch = self._server.epoch
        return self

    async def __aexit__(self, *error: object) -> None:
        """Nothing to do: the wire knows no end of a session."""

    async def call_tool(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, idempotent: bool = False
    ) -> Any:
        """Call one of the environment's tools.

        Args:
            name: the tool's name, as the policy wrote it.
            arguments: as an object, not as a JSON string.
            idempotent: calling it twice does no harm; only then is a failed call retried.

        Returns:
            The tool's JSON. A server may put an error into it (workplace_assistant does).

        Raises:
            GymStatusError: the server refused; 404 is an unknown tool, 422 wrong arguments.
            GymReplyError: the session was lost, or the answer is no JSON.
            GymError: another branch says why.
        """
        route = "/" + quote(name, safe="")
        call = self._made(route, "tool", to_json(dict(arguments or {})), retried=idempotent)
        call.timeout_s = self._config.tool_timeout_s
        return await self._call(call, read_json)

    async def verify(self, response: object) -> Reward:
        """The reward of `response` in this session; see `GymClient.verify`."""
        self._require_seeded()
        body = to_json(verify_body(self._row, response, self._config.unknown_params))
        call = self._made(ROUTE_VERIFY, "verify", body)
        reward = await self._client.verify_in_session(call, self._watched(call, read_reward))
        self._note_broken(call)
        return reward

    def _made(self, route: str, label: str, body: bytes, *, retried: bool = True) -> Call:
        cookie = self._jar.header
        headers = {"Cookie": cookie} if cookie else None
        timeout_s = self._config.verify_timeout_s
        return Call(route, label, body, timeout_s, retried, self._server, headers)

    async def _call(self, call: Call, read: Any) -> Any:
        self._require_seeded()
        reader = self._watched(call, lambda reply, _attempts, _latency_s: read(reply))
        outcome = await self._client.runtime().caller.call(call, reader)
        self._note_broken(call)
        if isinstance(outcome, Failure):
            raise gym_error(outcome, self._server.shown + call.route, call.attempts)
        return outcome

    def _watched(self, call: Call, read: Reader) -> Reader:
        """`read`, unless the answer shows that the session is lost."""

        def watched(reply: Reply, attempts: int, latency_s: float) -> Any:
            self._note_broken(call)
            self._jar.observe(reply)
            why = self.lost
            if why and reply.status == 200:
                return Failure(FailureClass.LOST_SESSION, why, reply.status)
            return read(reply, attempts, latency_s)

        return watched

    def _note_broken(self, call: Call) -> None:
        if call.broken and call.route != ROUTE_SEED:
            self._jar.lose("a connection broke, and a server that was restarted has no sessions")

    def _require_seeded(self) -> None:
        if self._server is None:
            raise ContractError("enter the session first: `async with gym.session(row) as s:`")
