"""One OpenAI route as plain ASGI: body in, reply or events out, and a client that may go away.

A client that goes away ends its call upstream. An answer that was ready by then is kept for the
client's next attempt.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from uuid import uuid4

import orjson
from starlette.responses import Response

from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller, Reply, StreamedReply

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[Mapping[str, Any], Caller], Awaitable[Reply | StreamedReply]]

COOKIE = "rlbridge_session"
_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class Endpoint:
    """Answers a route's requests.

    Args:
        answer: of the gateway.
        cookie: give callers without a session a cookie with a new one.
    """

    def __init__(self, answer: Answer, *, cookie: bool = False) -> None:
        self._answer = answer
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        raw = await _read(receive)
        if raw is None:
            return
        caller, fresh = self._caller(scope)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # ASGI runs in tasks
        gone = _Gone(receive, task)
        reply: Reply | StreamedReply | None = None
        try:
            try:
                reply = await self._answer(_parsed(raw), caller)
            except ApiError as error:
                await _send_error(send, error)
                return
            await _send_reply(send, reply, fresh)
        except asyncio.CancelledError:
            if not gone.gone:
                raise
            task.uncancel()
            if isinstance(reply, Reply):
                reply.lost()
        finally:
            gone.stop()

    def _caller(self, scope: Scope) -> tuple[Caller, str]:
        """Who asks, and the session to give a cookie for; empty for none."""
        session = scope.get("path_params", {}).get("session", "")
        key = cookie = header = ""
        retry = 0
        for name, value in scope["headers"]:
            if name == b"x-rlbridge-session":
                header = value.decode("latin-1")
            elif name == b"idempotency-key":
                key = value.decode("latin-1")
            elif name == b"x-stainless-retry-count":
                retry = int(value) if value.isdigit() else 0
            elif name == b"cookie":
                cookie = _from_cookie(value.decode("latin-1"))
        session = session or header
        fresh = ""
        if not session and self._cookie:
            session = cookie
            if not session:
                session = fresh = uuid4().hex
        return Caller(session or cookie, key, retry), fresh


class _Gone:
    """Watches for a client that goes away, and ends its request then."""

    def __init__(self, receive: Receive, request: "asyncio.Task[Any]") -> None:
        self.gone = False
        self._request = request
        self._watch = asyncio.ensure_future(receive())
        self._watch.add_done_callback(self._heard)

    def stop(self) -> None:
        """Watch no longer."""
        self._watch.remove_done_callback(self._heard)
        self._watch.cancel()

    def _heard(self, watch: "asyncio.Future[Message]") -> None:
        if not watch.cancelled() and watch.exception() is None:
            self.gone = True
            self._request.cancel()


def json_response(error: ApiError) -> Response:
    """An error as a response."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = f"{error.retry_after_s:g}"
    return Response(
        orjson.dumps(error.document()), error.status, headers, media_type="application/json"
    )


async def _read(receive: Receive) -> bytes | None:
    """A request's body; None if its client went away meanwhile."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return bytes(message.get("body", b""))
    parts = []
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    return None


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"the request's body is no JSON: {error}", code="invalid_json") from error


async def _send_reply(send: Send, reply: Reply | StreamedReply, fresh: str) -> None:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in reply.headers.items()]
    if fresh:
        cookie = f"{COOKIE}={fresh}; Path=/; HttpOnly; SameSite=Lax"
        headers.append((b"set-cookie", cookie.encode()))
    if isinstance(reply, Reply):
        headers += [_JSON, (b"content-length", b"%d" % len(reply.body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        return
    headers += [_EVENTS, (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with contextlib.aclosing(reply.events) as events:
        async for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _send_error(send: Send, error: ApiError) -> None:
    body = orjson.dumps(error.document())
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", f"{error.retry_after_s:g}".encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _from_cookie(header: str) -> str:
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""
