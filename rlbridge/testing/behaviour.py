"""How a NeMo Gym resources server behaves, without a server: a request in, an answer out.

The mock and the in-process server share it. Validation, session cookies and error bodies are
those of the wire; rewards are scripted; faults that a body or a header can show are applied here,
those of the connection (reset, slow) by whoever holds the connection.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from rlbridge.contracts.wire import (
    FAILURE_CLASS,
    REWARD,
    ROUTE_AGGREGATE,
    ROUTE_LIVENESS,
    ROUTE_SEED,
    ROUTE_VERIFY,
)
from rlbridge.errors import ContractError
from rlbridge.gym.embedded.aggregate import aggregate_metrics
from rlbridge.gym.embedded.models import AggregateRequest, VerifyRequest
from rlbridge.testing.faults import FaultKind, Faults

Body = dict[str, Any]
Tool = Callable[[str, Body], Any]
# A number for every verify, numbers in turn, or a function of the request body; a dict is
# merged into the answer, so it can hold `reward_components` or a reward that is no number.
Rewards = float | dict[str, Any] | Iterable[Any] | Callable[[Body], Any]

COOKIE: Final = "MockResourcesServer___mock"
# Faults that leave the reward readable.
_HARMLESS: Final = frozenset({None, FaultKind.DROPPED_COOKIE, FaultKind.SWAPPED_COOKIE})
GARBAGE: Final = b"\x00\xff garbage " * 200_000


@dataclass(slots=True)
class Answer:
    """An HTTP answer to be sent by whoever has a connection.

    Attributes:
        fault: what the sender has to do to it, if anything.
    """

    status: int
    body: bytes
    headers: dict[str, str]
    fault: FaultKind | None = None


@dataclass(slots=True)
class Behaviour:
    """A resources server in memory.

    Attributes:
        rewards: what /verify answers, see `Rewards`.
        required: row fields beside the usual ones without which /verify is a 422.
        tools: by name; called with the session's ID and the arguments.
        faults: what goes wrong when; only on /verify unless `faulty_routes` says otherwise.
        faulty_routes: routes on which faults are dealt.
        requests: (route, body) of everything asked so far.
    """

    rewards: Rewards = 1.0
    required: tuple[str, ...] = ()
    tools: Mapping[str, Tool] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    faulty_routes: tuple[str, ...] = (ROUTE_VERIFY,)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    _sequence: Iterator[Any] | None = None

    @property
    def verifies(self) -> int:
        """How many /verify requests arrived."""
        return sum(route == ROUTE_VERIFY for route, _ in self.requests)

    def respond(self, method: str, route: str, body: bytes, cookie: str = "") -> Answer:
        """The answer to one request.

        Args:
            method: as on the wire.
            route: the path.
            body: as it came.
            cookie: the Cookie header.
        """
        session = _session_in(cookie) or str(uuid4())
        fault = self.faults.next() if route in self.faulty_routes else None
        status, content = self._answer(method, route, body, session, fault)
        answer = Answer(
            status,
            json.dumps(content, separators=(",", ":")).encode(),
            {"content-type": "application/json", "set-cookie": _set_cookie(session)},
            fault,
        )
        return _spoil(answer, content) if fault is not None else answer

    def _answer(
        self, method: str, route: str, raw: bytes, session: str, fault: FaultKind | None
    ) -> tuple[int, Any]:
        if route == ROUTE_LIVENESS:
            return 200, {"status": "ok"}
        tool = self.tools.get(route.removeprefix("/"))
        if tool is None and route not in (ROUTE_SEED, ROUTE_VERIFY, ROUTE_AGGREGATE):
            return 404, {"detail": "Not Found"}
        if method != "POST":
            return 405, {"detail": "Method Not Allowed"}
        if not raw and tool is None:
            return 422, _missing("body", None)
        try:
            body = json.loads(raw) if raw else {}
        except ValueError as error:
            return 422, _not_json(error)
        self.requests.append((route, body))
        if tool is not None:
            return 200, tool(session, body)
        if route == ROUTE_SEED:
            return 200, {}
        if route == ROUTE_AGGREGATE:
            refused = _refused(AggregateRequest, body)
            return refused or (200, aggregate_metrics(body["verify_responses"]))
        return self._verify(body, spoiled=fault not in _HARMLESS)

    def _verify(self, body: Body, *, spoiled: bool) -> tuple[int, Any]:
        for name in self.required:
            if name not in body:
                return 422, _missing(name, body)
        refused = _refused(VerifyRequest, body)
        if refused is not None:
            return refused
        reward = self._next_reward(body, spoiled=spoiled)
        extra = reward if isinstance(reward, dict) else {REWARD: reward}
        request = VerifyRequest.model_validate(body)
        return 200, {**request.model_dump(), **extra}

    def _next_reward(self, body: Body, *, spoiled: bool) -> Any:
        rewards = self.rewards
        if callable(rewards):
            return rewards(body)
        if isinstance(rewards, int | float | dict):
            return rewards
        if spoiled:  # nobody will read it: a scripted reward is kept for who does
            return 1.0
        if self._sequence is None:
            self._sequence = iter(rewards)
        for reward in self._sequence:
            return reward
        raise ContractError("the scripted rewards have run out; script one for every verify")


def _spoil(answer: Answer, content: Any) -> Answer:
    """Apply a fault that shows in status, headers or body."""
    fault = answer.fault
    statuses = {
        FaultKind.STATUS_500: (500, "RuntimeError('boom')"),
        FaultKind.STATUS_503: (503, {"detail": "overloaded"}),
        FaultKind.STATUS_429: (429, {"detail": "too many requests"}),
        FaultKind.STATUS_422: (422, _missing("expected_answer", None)),
        FaultKind.REDIRECT: (307, ""),
    }
    values: dict[FaultKind | None, Any] = {
        FaultKind.NAN: float("nan"),
        FaultKind.INFINITY: float("inf"),
        FaultKind.NULL_REWARD: None,
        FaultKind.STRING_REWARD: "1.0",
        FaultKind.TRUE_REWARD: True,
    }
    if fault in statuses:
        answer.status, words = statuses[fault]
        answer.body = json.dumps(words).encode()
        if fault is FaultKind.STATUS_503:
            answer.headers["retry-after"] = "0.05"
        if fault is FaultKind.REDIRECT:
            answer.headers["location"] = "http://127.0.0.1:1/login?token=secret"
    elif fault in values:
        answer.body = json.dumps({**content, REWARD: values[fault]}).encode()
    elif fault is FaultKind.MISSING_REWARD:
        content = {key: value for key, value in content.items() if key != REWARD}
        answer.body = json.dumps(content).encode()
    elif fault is FaultKind.REPORTED:
        answer.body = json.dumps({**content, FAILURE_CLASS: "judge_failed"}).encode()
    else:
        _spoil_framing(answer)
    return answer


def _spoil_framing(answer: Answer) -> None:
    if answer.fault is FaultKind.TRUNCATED_JSON:
        answer.body = answer.body[: len(answer.body) // 2]
    elif answer.fault is FaultKind.GARBAGE:
        answer.body = GARBAGE
    elif answer.fault is FaultKind.WRONG_CONTENT_TYPE:
        answer.headers["content-type"] = "text/html; charset=utf-8"
    elif answer.fault is FaultKind.DROPPED_COOKIE:
        del answer.headers["set-cookie"]
    elif answer.fault is FaultKind.SWAPPED_COOKIE:
        answer.headers["set-cookie"] = _set_cookie(str(uuid4()))


def _refused(model: type[BaseModel], body: Body) -> tuple[int, Any] | None:
    try:
        model.model_validate(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        return 422, {"detail": [{**item, "loc": ["body", *item["loc"]]} for item in errors]}
    return None


def _missing(name: str, value: Any) -> Body:
    loc = ["body"] if name == "body" else ["body", name]
    return {"detail": [{"type": "missing", "loc": loc, "msg": "Field required", "input": value}]}


def _not_json(error: ValueError) -> Body:
    item = {"type": "json_invalid", "loc": ["body", 1], "msg": "JSON decode error", "input": {}}
    return {"detail": [{**item, "ctx": {"error": str(error).partition(":")[0]}}]}


def _signature(payload: str) -> str:
    return hmac.new(COOKIE.encode(), payload.encode(), hashlib.sha256).hexdigest()[:27]


def _set_cookie(session: str) -> str:
    payload = base64.b64encode(json.dumps({"session_id": session}).encode()).decode()
    return f"{COOKIE}={payload}.aaaaaa.{_signature(payload)}; path=/; httponly; samesite=lax"


def _session_in(cookie: str) -> str | None:
    """The session of a Cookie header; None, as on the wire, for one that was tampered with."""
    for part in cookie.split("; "):
        name, _, value = part.partition("=")
        payload, _, rest = value.partition(".")
        if name == COOKIE and rest.endswith(f".{_signature(payload)}"):
            return str(json.loads(base64.b64decode(payload))["session_id"])
    return None
