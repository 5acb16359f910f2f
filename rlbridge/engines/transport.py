"""HTTP to one engine: JSON in and out, server-sent events, and errors that say whose they are.

A request that found its kept-alive connection closed is sent again: sampling has no side effects.
Nothing else is retried here. Refuses to show keys: an upstream's words are shortened and cleaned.
"""

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final

import aiohttp
import orjson

from rlbridge.errors import EngineError

Json = dict[str, Any]
_RESENDS: Final = 2
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_DETAIL: Final = 500


class EngineHttp:
    """Connections to one engine.

    Args:
        root: base URL without `/v1`.
        api_key: sent as a bearer token; empty for none.
        connect_timeout_s: for opening a connection.
        call_timeout_s: for a whole call, a stream's last byte included.
        keepalive_s: idle connections are closed after this.
    """

    def __init__(
        self,
        root: str,
        *,
        api_key: str = "",
        connect_timeout_s: float = 5.0,
        call_timeout_s: float = 1800.0,
        keepalive_s: float = 4.0,
    ) -> None:
        self.root = root
        self._api_key = api_key
        self._timeout = aiohttp.ClientTimeout(
            total=call_timeout_s, sock_connect=connect_timeout_s, connect=None
        )
        self._keepalive_s = keepalive_s
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Json, *, timeout_s: float | None = None) -> Json:
        """The JSON object that answers `body`.

        Raises:
            EngineError: no answer, a status of 400 or more, or no JSON object.
        """
        return self._object(await self._request("POST", path, body, timeout_s), path)

    async def get(self, path: str, *, timeout_s: float | None = None) -> Json:
        """The JSON object at `path`; empty where the answer is empty.

        Raises:
            EngineError: as `post`.
        """
        data = await self._request("GET", path, None, timeout_s)
        return self._object(data, path) if data else {}

    async def delete(self, path: str) -> None:
        """Delete what is at `path`.

        Raises:
            EngineError: as `post`.
        """
        await self._request("DELETE", path, None, None)

    async def events(self, path: str, body: Json) -> AsyncGenerator[bytes, None]:
        """The lines of a stream of server-sent events, as they come.

        Raises:
            EngineError: as `post`; or the stream broke.
        """
        with self._mapped(path):
            reply = await self._open("POST", path, body, self._timeout)
            async with contextlib.aclosing(_lines(reply)) as lines:
                async for line in lines:
                    yield line

    async def aclose(self) -> None:
        """Close the connections; requests in flight fail."""
        if self._session is not None:
            await self._session.close()

    async def _request(
        self, method: str, path: str, body: Json | None, timeout_s: float | None
    ) -> bytes:
        timeout = self._timeout
        if timeout_s is not None:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
        with self._mapped(path):
            async with await self._open(method, path, body, timeout) as reply:
                return await reply.read()

    async def _open(
        self, method: str, path: str, body: Json | None, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        data = None
        if body is not None:
            data = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        for left in reversed(range(_RESENDS + 1)):
            try:
                reply = await self._connected().request(
                    method, self.root + path, data=data, timeout=limits, allow_redirects=False
                )
                break
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if not left or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        if reply.status >= 300:
            async with reply:
                raise self._refusal(reply.status, await reply.content.read(1 << 16), path)
        return reply

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"content-type": "application/json"}
            if self._api_key:
                headers["authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keepalive_s),
                headers=headers,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    @contextlib.contextmanager
    def _mapped(self, path: str) -> Iterator[None]:
        url = self.root + path
        try:
            yield
        except TimeoutError as error:  # aiohttp's timeouts are connection errors too
            raise EngineError(
                f"{url}: no whole answer before the deadline",
                code="timeout",
                retryable=True,
                url=url,
            ) from error
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "closed" not in str(error):
                raise
            code, reason = "connection", str(error) or type(error).__name__
            if isinstance(error, aiohttp.ClientConnectorError):
                code, reason = "unreachable", f"nobody answers ({error.os_error.strerror})"
            raise EngineError(
                f"{url}: {self._clean(reason)}", code=code, retryable=True, url=url
            ) from error

    def _refusal(self, status: int, data: bytes, path: str) -> EngineError:
        url = self.root + path
        message, code, param = _explained(data)
        return EngineError(
            f"{url}: {status}: {self._clean(message)}",
            status=status,
            code=self._clean(code),
            param=param,
            retryable=status in _RETRYABLE,
            url=url,
        )

    def _object(self, data: bytes, path: str) -> Json:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise self.bad_reply(path, "the answer is no JSON") from error
        if not isinstance(value, dict):
            raise self.bad_reply(path, "the answer is no JSON object")
        return value

    def bad_reply(self, path: str, reason: str) -> EngineError:
        """The error for an answer nobody can use."""
        url = self.root + path
        return EngineError(
            f"{url}: {self._clean(reason)}", status=200, code="bad_reply", retryable=True, url=url
        )

    def stream_error(self, line: bytes, path: str, reason: str) -> EngineError:
        """The error for an event nobody can use: the engine's own where it sent one.

        A stream is answered with a 200 before vLLM looks at the request.
        """
        data = line.removeprefix(b"data:").strip()
        try:
            status = int(orjson.loads(data)["error"]["code"])
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
            return self.bad_reply(path, reason)
        return self._refusal(status, data, path)

    def _clean(self, text: str) -> str:
        if self._api_key:
            text = text.replace(self._api_key, "***")
        return text if len(text) <= _DETAIL else text[:_DETAIL] + "..."


async def _lines(reply: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Lines of any length: aiohttp's own reader refuses those of a long prompt's IDs."""
    rest = b""
    async with reply:
        async for data in reply.content.iter_any():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line
    if rest.strip():
        yield rest


def _explained(data: bytes) -> tuple[str, str, str | None]:
    """An error body's message, code and parameter; OpenAI's shape, FastAPI's or plain text."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        said = data.decode("utf-8", "replace").strip() or "no reason given"
        if said == "Internal Server Error":  # an exception that nobody caught
            said += " (its log has the reason)"
        return said, "", None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error), "", None
    message = error.get("message") or error.get("detail") or "no reason given"
    param = error.get("param")
    given = error.get("code")
    code = given if isinstance(given, str) and given else str(error.get("type") or "")
    if "maximum context length" in str(message):  # vLLM has no code of its own for it
        code = "context_length_exceeded"
    text = message if isinstance(message, str) else orjson.dumps(message).decode()
    return text, code, param if isinstance(param, str) else None
