"""`GymMock`: a Gym server in respx, for tests of code that talks to one through httpx."""

from typing import Any

import httpx
import respx

from rlbridge.config import GymConfig
from rlbridge.testing.behaviour import Answer, Behaviour
from rlbridge.testing.faults import FaultKind

MOCK_URL = "http://gym.test"


class GymMock:
    """Answers every request to `url` as NeMo Gym would; no socket is opened.

    Attributes:
        url: base URL that is mocked.
        behaviour: what it answers: `gym_mock.behaviour.rewards = [1.0, 0.0]`.
        router: the respx router, for routes and assertions of your own.
    """

    def __init__(self, url: str = MOCK_URL) -> None:
        self.url = url
        self.behaviour = Behaviour()
        self.router = respx.MockRouter(assert_all_called=False)
        self.router.route(url__startswith=url).mock(side_effect=self._answer)

    def config(self, **fields: Any) -> GymConfig:
        """A client config for this mock: httpx, with waits short enough for tests."""
        quick = {"backoff_initial_s": 0.001, "outage_patience_s": 0.0, "breaker_probe_s": 0.01}
        return GymConfig(**{"url": self.url, "transport": "httpx", **quick, **fields})

    def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = self.behaviour.respond(
            request.method, request.url.path, request.content, request.headers.get("cookie", "")
        )
        _raise_fault(answer, request)
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body)


def _raise_fault(answer: Answer, request: httpx.Request) -> None:
    """What a broken connection looks like to httpx's user."""
    if answer.fault in (FaultKind.RESET, FaultKind.RESET_MID_BODY):
        raise httpx.ReadError("connection reset by peer", request=request)
    if answer.fault in (FaultKind.SLOW, FaultKind.SLOW_BODY):
        raise httpx.ReadTimeout("timed out", request=request)
