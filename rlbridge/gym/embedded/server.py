"""A resources server of our own: NeMo Gym's routes, cookies and refusals around an evaluator.

Needs fastapi, uvicorn and itsdangerous (extra `gateway`); nothing else imports this module
before it is asked to serve.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware

from rlbridge.contracts.reward import Reward
from rlbridge.contracts.wire import (
    EXTRACTED_ANSWER,
    FAILURE_CLASS,
    INSTANCE_CONFIG,
    JUDGE_ERROR,
    MASK_SAMPLE,
    RESPONSE,
    REWARD,
    REWARD_COMPONENTS,
    ROUTE_AGGREGATE,
    ROUTE_LIVENESS,
    ROUTE_SEED,
    ROUTE_VERIFY,
)
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.gym.cookies import SESSION_ID
from rlbridge.gym.embedded.aggregate import aggregate_metrics
from rlbridge.gym.embedded.models import AggregateRequest, SeedRequest, VerifyRequest

Next = Callable[[Request], Awaitable[Response]]


# What a verdict writes; a row that carries an earlier one must not speak for this one.
_VERDICT: Final = (
    REWARD,
    REWARD_COMPONENTS,
    MASK_SAMPLE,
    FAILURE_CLASS,
    JUDGE_ERROR,
    EXTRACTED_ANSWER,
)


def evaluator_app(spec: EvaluatorSpec, evaluator: Evaluator) -> FastAPI:
    """An evaluator as a resources server, an ASGI app.

    A body that doesn't fit `spec.row` is a 422. A verdict that can't be had is a 200 with the
    marks of a failed sample, see `marks`.

    Args:
        spec: what it reads; its name is part of the session cookie's.
        evaluator: judges; whoever made it closes it.
    """

    class Body(VerifyRequest, spec.row or BaseModel):  # type: ignore[misc]
        model_config = ConfigDict(extra="allow", frozen=False)

    async def verify(body: Body) -> dict[str, Any]:
        echo = body.model_dump()
        for name in _VERDICT:
            echo.pop(name, None)
        row = {name: value for name, value in echo.items() if name != RESPONSE}
        reward = await evaluator.verify(row, echo[RESPONSE])
        return {**echo, **marks(reward, echo.get(INSTANCE_CONFIG))}

    words = "".join(word.capitalize() for word in spec.name.split("_"))
    app = resources_app(f"{words}ResourcesServer___{spec.name}")
    app.add_api_route(ROUTE_VERIFY, verify, methods=["POST"])
    return app


def marks(reward: Reward, instance_config: object = None) -> dict[str, Any]:
    """The fields of a verify answer that hold the verdict.

    An answer must have a reward, and an error status ends a whole run of NeMo Gym's. So a reward
    that could not be computed is a 0.0 with three marks: `_ng_failure_class`, by which NeMo Gym
    sets the rollout aside and our client takes it as invalid; `mask_sample`, and the same inside
    `instance_config`, where NeMo-RL looks for it.
    """
    if reward.valid:
        masked = {MASK_SAMPLE: True} if reward.mask_sample else {}
        return {
            REWARD: reward.value,
            EXTRACTED_ANSWER: reward.extracted,
            REWARD_COMPONENTS: dict(reward.components),
            **masked,
        }
    config = instance_config if isinstance(instance_config, dict) else {}
    return {
        REWARD: 0.0,
        MASK_SAMPLE: True,
        INSTANCE_CONFIG: {**config, MASK_SAMPLE: True},
        FAILURE_CLASS: reward.reported or str(reward.failure),
        JUDGE_ERROR: reward.detail,
    }


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
