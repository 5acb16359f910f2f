"""What stands before the gateway's routes: tokens, sizes and deadlines. Plain ASGI.

Refuses a request before its body is read where it can, always in OpenAI's error shape, and keeps
configured secrets out of every error that leaves: an upstream may quote the key it was given.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import orjson

from rlbridge.gateway.access import Access

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SESSION_HEADER: Final = b"x-rlbridge-session"
_REDACTED: Final = b"[secret]"


class Guard:
    """An ASGI app in front of another.

    Args:
        app: what is guarded.
        access: who may pass; None lets everybody pass.
        max_body_bytes: a longer body is a 413.
        max_header_bytes: of all headers' names and values together; more is a 431.
        timeout_s: how long a request may take, answer included; longer is a 504.
        secrets: what no error may show.
    """

    def __init__(
        self,
        app: App,
        *,
        access: Access | None = None,
        max_body_bytes: int,
        max_header_bytes: int,
        timeout_s: float,
        secrets: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._access = access
        self._max_body = max_body_bytes
        self._max_header = max_header_bytes
        self._timeout_s = timeout_s
        self._secrets = tuple(secret.encode() for secret in secrets if secret)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        size, length, authorization, session = _headers(scope["headers"])
        if size > self._max_header:
            words = f"{size} bytes of headers; at most {self._max_header} are read"
            await refuse(send, 431, "headers_too_large", words)
        elif self._access is not None and not self._access.allows(
            scope["path"], authorization, session
        ):
            words = "send a valid token: `Authorization: Bearer TOKEN` (OpenAI clients: api_key)"
            await refuse(send, 401, "invalid_api_key", words)
        elif length > self._max_body:
            await refuse(send, 413, "body_too_large", _too_large(self._max_body))
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        watched = _Watched(receive, send, self._max_body, self._secrets)
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                await self._app(scope, watched.receive, watched.send)
        except _BodyTooLargeError:
            if not watched.started:
                await refuse(send, 413, "body_too_large", _too_large(self._max_body))
        except TimeoutError:
            if not deadline.expired() or watched.started:
                raise  # a stream that was cut: the server closes the connection, and clients see it
            words = f"no answer within {self._timeout_s:g} s (request_timeout_s)"
            await refuse(send, 504, "timeout", words)


class _Watched:
    """One request's way in and out: counts what comes, cleans errors that go."""

    def __init__(
        self, receive: Receive, send: Send, max_body: int, secrets: tuple[bytes, ...]
    ) -> None:
        self._receive = receive
        self._send = send
        self._max_body = max_body
        self._secrets = secrets
        self._read = 0
        self._error: Message | None = None  # the head of an error, kept until its body is whole
        self._body = b""
        self.started = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._max_body:
                raise _BodyTooLargeError
        return message

    async def send(self, message: Message) -> None:
        if self._read > self._max_body:
            # The app answers in its own way to a body it couldn't read; once only.
            if not self.started:
                self.started = True
                await refuse(self._send, 413, "body_too_large", _too_large(self._max_body))
            return
        self.started = True
        if self._secrets and message["type"] == "http.response.start" and message["status"] >= 400:
            self._error = message
            return
        if self._error is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_cleaned(self._error)
            return
        await self._send(message)

    async def _send_cleaned(self, head: Message) -> None:
        body = self._body
        for secret in self._secrets:
            body = body.replace(secret, _REDACTED)
        headers = [pair for pair in head["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({**head, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class _BodyTooLargeError(Exception):
    """A body without a (true) content-length turned out too large."""


def _headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, int, bytes, str]:
    """Their size in bytes, the content-length (0 if none is told), authorization and session."""
    size, length, authorization, session = 0, 0, b"", ""
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"authorization":
            authorization = value
        elif name == SESSION_HEADER:
            session = value.decode("latin-1")
    return size, length, authorization, session


def _too_large(limit: int) -> str:
    return f"the body is longer than {limit} bytes (max_body_mb)"


async def refuse(send: Send, status: int, code: str, words: str) -> None:
    """Answer with an error in OpenAI's shape."""
    error = {"message": words, "type": "invalid_request_error", "param": None, "code": code}
    if status >= 500:
        error["type"] = "server_error"
    body = orjson.dumps({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
