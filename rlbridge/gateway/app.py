"""ASGI around a `Gateway`: the OpenAI routes, sessions, an OpenAPI document.

The routes that rollouts call often are plain ASGI: no dependency injection, no model of the body
and no `BaseHTTPMiddleware` between the socket and the gateway. Everything else may be FastAPI.
Every error, an unknown route's too, has OpenAI's shape.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from rlbridge.gateway.endpoint import Endpoint, json_response
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.gateway import Gateway
from rlbridge.gateway.openapi import openai_paths
from rlbridge.gateway.session_routes import session_router

_DESCRIPTION = (
    "OpenAI's API over a policy whose every token is kept. A rollout is a session: put its ID into "
    "the URL (`/s/{session}/v1/...`), the header `x-rlbridge-session` or the metadata "
    "(`rlbridge_session`)."
)


def create_app(
    gateway: Gateway,
    *,
    routers: Sequence[APIRouter] = (),
    middleware: Sequence[Middleware] = (),
) -> FastAPI:
    """The gateway as an ASGI app.

    Enters and leaves the gateway with its lifespan, unless the gateway is open already (inside a
    worker that owns it).

    Args:
        gateway: what answers; also `app.state.gateway`.
        routers: further routes (health, metrics, /run, ...); they may raise `ApiError`.
        middleware: plain ASGI middleware, outermost first (authentication, limits). It sees
            `scope["path"]` as sent; sessions are `/s/{session}/...` or the header
            `x-rlbridge-session`.
    """
    app = FastAPI(
        title="rlbridge gateway",
        description=_DESCRIPTION,
        lifespan=_lifespan(gateway),
        middleware=list(middleware),
        docs_url=None,
        redoc_url=None,
    )
    app.state.gateway = gateway
    app.router.routes[:0] = _openai_routes(gateway)
    app.include_router(session_router(gateway))
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _crash)

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            document = get_openapi(
                title=app.title, version="1", description=_DESCRIPTION, routes=app.routes
            )
            paths, schemas = openai_paths()
            document["paths"] = paths | document["paths"]
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
            app.openapi_schema = document
        known: dict[str, Any] = app.openapi_schema
        return known

    app.openapi = openapi
    return app


def _openai_routes(gateway: Gateway) -> list[Route]:
    cookie = gateway.config.sessions.cookie
    routes = []
    for path, answer in (
        ("/v1/chat/completions", gateway.chat),
        ("/v1/responses", gateway.responses),
        ("/v1/completions", gateway.completions),
        ("/tokenize", gateway.tokenize),
        ("/v1/tokenize", gateway.tokenize),
    ):
        endpoint = Endpoint(answer, cookie=cookie)
        routes += [
            Route(path, endpoint, methods=["POST"]),
            Route("/s/{session}" + path, endpoint, methods=["POST"]),
        ]

    async def models(request: Request) -> Response:
        return Response(gateway.models().body, media_type="application/json")

    for path in ("/v1/models", "/s/{session}/v1/models"):
        routes.append(Route(path, models, methods=["GET"]))
    return routes


def _lifespan(gateway: Gateway) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if gateway.is_open:
            yield
        else:
            async with gateway:
                yield

    return lifespan


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 # registered for it alone
    return json_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 # registered for it alone
    message = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND and message == "Not Found":
        message = f"there is no route {request.method} {request.url.path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.method} isn't allowed on {request.url.path}"
    response = json_response(ApiError(message, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 # registered for it alone
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return json_response(ApiError(f"{place or 'body'}: {first['msg']}", param=place or None))


async def _crash(request: Request, error: Exception) -> Response:
    """An error of ours; its words go to the log, not to the client."""
    told = ApiError("the gateway failed at this request; its log says how", status=500)
    return Response(orjson.dumps(told.document()), 500, media_type="application/json")
