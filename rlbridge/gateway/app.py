"""ASGI around a `Gateway`: the OpenAI routes, sessions, an OpenAPI document.

The routes that rollouts call often are plain ASGI: no dependency injection, no model of the body
and no `BaseHTTPMiddleware` between the socket and the gateway. Everything else may be FastAPI.
"""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from rlbridge.gateway.gateway import Gateway


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
    raise NotImplementedError
