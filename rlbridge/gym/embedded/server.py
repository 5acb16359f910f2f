"""A resources server of our own: NeMo Gym's routes, cookies and refusals around a grader.

Needs fastapi, uvicorn and itsdangerous (extra `gateway`); nothing else imports this module
before it is asked to serve.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import field_validator
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware

from rlbridge.contracts.wire import ROUTE_AGGREGATE, ROUTE_LIVENESS, ROUTE_SEED, ROUTE_VERIFY
from rlbridge.evaluators.arithmetic import grade, integer
from rlbridge.gym.cookies import SESSION_ID
from rlbridge.gym.embedded.aggregate import aggregate_metrics
from rlbridge.gym.embedded.models import (
    AggregateRequest,
    SeedRequest,
    VerifyRequest,
    answer_text,
)

Next = Callable[[Request], Awaitable[Response]]


class ArithmeticVerifyRequest(VerifyRequest):
    """A row of the arithmetic server."""

    expected_answer: str

    @field_validator("expected_answer")
    @classmethod
    def _is_integer(cls, value: str) -> str:
        if integer(value) is None:
            raise ValueError("expected_answer must be an integer in digits")
        return value


def arithmetic_app(name: str = "arithmetic") -> FastAPI:
    """The arithmetic server as an ASGI app.

    Args:
        name: its name in a Gym config; part of the session cookie's name.
    """

    async def verify(body: ArithmeticVerifyRequest) -> dict[str, Any]:
        verdict = grade(answer_text(body.response), body.expected_answer)
        return {
            "responses_create_params": body.responses_create_params.model_dump(),
            "response": body.response.model_dump(),
            "reward": verdict.reward,
            "expected_answer": body.expected_answer,
            "extracted_answer": verdict.extracted,
            "reward_components": verdict.components,
        }

    app = resources_app(f"ArithmeticResourcesServer___{name}")
    app.add_api_route(ROUTE_VERIFY, verify, methods=["POST"])
    return app


def resources_app(cookie: str) -> FastAPI:
    """What every resources server has but /verify: routes, session cookie, told errors."""
    app = FastAPI(openapi_url=None)
    # Innermost first. The key is the cookie's name, as upstream: the signature guards against
    # accidents only.
    app.add_middleware(BaseHTTPMiddleware, dispatch=_start_session)
    app.add_middleware(SessionMiddleware, secret_key=cookie, session_cookie=cookie)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_tell_errors)
    app.add_api_route(ROUTE_SEED, _seed_session, methods=["POST"])
    app.add_api_route(ROUTE_AGGREGATE, _aggregate, methods=["POST"])
    app.add_api_route(ROUTE_LIVENESS, _liveness, methods=["GET"])
    return app


async def _start_session(request: Request, call_next: Next) -> Response:
    # Assigned every time, so that every answer sets the cookie again.
    request.session[SESSION_ID] = request.session.get(SESSION_ID) or str(uuid4())
    return await call_next(request)


async def _tell_errors(request: Request, call_next: Next) -> Response:
    try:
        return await call_next(request)
    except Exception as error:  # noqa: BLE001 (the wire's way: its repr as a JSON string)
        return JSONResponse(repr(error), status_code=500)


async def _seed_session(body: SeedRequest) -> dict[str, Any]:
    return {}


async def _aggregate(body: AggregateRequest) -> dict[str, Any]:
    return aggregate_metrics(body.verify_responses)


async def _liveness() -> dict[str, str]:
    return {"status": "ok"}
