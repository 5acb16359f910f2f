"""Routes for those who run a gateway: is it alive, can it answer, what has it done, who is it.

`/health` asks nobody. `/ready` asks the engine, for a moment. The rest is for Prometheus and for
NeMo Gym's own clients. None of them says a secret.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from rlbridge.contracts.wire import ROUTE_GLOBAL_CONFIG, ROUTE_LIVENESS, ROUTE_SERVER_INSTANCES
from rlbridge.errors import EngineError
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.gateway import Gateway
from rlbridge.gateway.gym_head import Head, reached_at
from rlbridge.gateway.meter import INSTALL, Meter

READY_TIMEOUT_S: Final = 2.0


def operations_router(
    gateway: Gateway,
    head: Head,
    meter: Meter | None,
    details: Callable[[], Mapping[str, Any]],
    draining: Callable[[], bool],
) -> APIRouter:
    """The routes.

    Args:
        gateway: what is asked.
        head: what Gym's clients are told.
        meter: counts requests; None where prometheus_client isn't installed.
        details: what /status adds (counters, replicas).
        draining: whether the gateway is about to end.
    """
    router = APIRouter()
    started = time.monotonic()

    async def alive() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    async def state() -> dict[str, Any]:
        why = "the gateway is draining" if draining() else await _engine_trouble(gateway)
        return {
            "ready": not why,
            "reason": why or None,
            "engine": _described(gateway),
            "uptime_s": round(time.monotonic() - started, 1),
        }

    async def ready() -> Response:
        """Whether a call would be answered now; 503 with the reason if not."""
        document = await state()
        return _json(document, 200 if document["ready"] else 503)

    async def status() -> Response:
        """The same with counters and replicas, for people; always 200."""
        return _json({**await state(), **details()})

    async def metrics() -> Response:
        """Counters for Prometheus."""
        if meter is None:
            raise ApiError(
                f"metrics need prometheus_client on the gateway's side: `{INSTALL}`",
                status=501,
                code="not_installed",
            )
        text, kind = meter.exposition()
        return Response(text, media_type=kind)

    async def global_config(request: Request) -> Response:
        """Gym's global config: a YAML document inside a JSON string."""
        return _json(head.global_config(*reached_at(request.scope, request.scope["headers"])))

    async def instances(request: Request) -> Response:
        """The servers the gateway is to Gym."""
        return _json(head.server_instances(*reached_at(request.scope, request.scope["headers"])))

    for route in (ROUTE_LIVENESS, "/health"):
        router.add_api_route(route, alive, methods=["GET"], include_in_schema=route != "/")
    router.add_api_route("/ready", ready, methods=["GET"])
    router.add_api_route("/status", status, methods=["GET"])
    router.add_api_route("/metrics", metrics, methods=["GET"])
    router.add_api_route(ROUTE_GLOBAL_CONFIG, global_config, methods=["GET"])
    router.add_api_route(ROUTE_SERVER_INSTANCES, instances, methods=["GET"])
    return router


async def _engine_trouble(gateway: Gateway) -> str:
    """Why the engine can't be asked, or empty."""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            await gateway.engine.info()
    except TimeoutError:
        return f"the engine did not answer within {READY_TIMEOUT_S:g} s"
    except EngineError as error:
        return f"the engine can't be asked: {error}"
    return ""


def _described(gateway: Gateway) -> dict[str, Any]:
    info = gateway.info
    return {
        "model": info.model,
        "wire": info.wire,
        "tokens": info.tokens,
        "max_model_len": info.max_model_len,
        "policy_version": info.policy_version,
    }


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document, default=str), status, media_type="application/json")
