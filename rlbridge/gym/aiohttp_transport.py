"""The default transport. aiohttp's pool is O(1) a request, httpx's is O(n)."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from rlbridge.config import GymConfig
from rlbridge.gym.deadlines import Deadlines
from rlbridge.gym.replies import Reply
from rlbridge.gym.transport import (
    BrokenReplyError,
    ConnectTimeoutError,
    TransportError,
    is_refused,
    request_headers,
    tls_context,
)

_URLS_KEPT: Final = 4096


# More connections opened at once take longer than a connect deadline to get through the loop.
_OPENING_AT_ONCE: Final = 128


class _Connector(aiohttp.TCPConnector):
    """Opens a bounded number of connections at once; any number may be open."""

    def __init__(self, keepalive_s: float, tls: ssl.SSLContext) -> None:
        # No limit here: how many requests are out is the client's business.
        super().__init__(limit=0, keepalive_timeout=keepalive_s, ttl_dns_cache=60, ssl=tls)
        self._opening = asyncio.Semaphore(_OPENING_AT_ONCE)

    async def _create_connection(self, *request: Any) -> Any:
        async with self._opening:
            return await super()._create_connection(*request)


class AiohttpTransport:
    """Sends by one aiohttp session; how many requests are in flight is the caller's business."""

    def __init__(self, config: GymConfig) -> None:
        self._max_bytes = int(config.max_reply_mb * 1_000_000)
        self._urls: dict[str, URL] = {}
        self._deadlines: dict[float, Deadlines] = {}
        self._connector = _Connector(config.keepalive_s, tls_context(config))
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # All of them here and none with a request: merging is what costs.
            headers=CIMultiDict(request_headers(config)),
            proxy=config.proxy,
            # Total deadlines are ours: one timer for all, where aiohttp's is one a request.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_timeout_s),
        )

    async def send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> Reply:
        """Send one request and read the whole answer; see `Transport.send`."""
        target = self._urls.get(url)
        if target is None:
            target = self._parse(url)
        deadline = (self._deadlines.get(timeout_s) or self._group(timeout_s)).start()
        try:
            async with self._session.request(
                method,
                target,
                data=body,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                return _reply(answer, await self._read(answer))
        except asyncio.CancelledError:
            if deadline.is_ours():
                raise TimeoutError from None
            raise
        except aiohttp.ConnectionTimeoutError as error:
            raise ConnectTimeoutError("no connection in time") from error
        except TimeoutError:  # an OSError too, but the deadline
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _at_the_seam(error) from error
        finally:
            deadline.ended()

    async def aclose(self) -> None:
        """Close all connections."""
        for group in self._deadlines.values():
            group.close()
        await self._session.close()
        # The transports of closed sockets finish on the next turn; warnings otherwise.
        await asyncio.sleep(0)

    def abandon(self) -> None:
        """Let go without a loop."""
        if self._session.closed:
            return
        self._session.detach()
        _drain(self._connector.close())

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        length = answer.content_length
        if length is not None and length <= self._max_bytes:
            return await answer.read()
        parts: list[bytes] = []
        size = 0
        if length is None:
            async for part in answer.content.iter_any():
                size += len(part)
                if size > self._max_bytes:
                    break
                parts.append(part)
            else:
                return b"".join(parts)
        answer.close()
        raise BrokenReplyError(f"the answer is longer than {self._max_bytes} bytes")

    def _group(self, timeout_s: float) -> Deadlines:
        return self._deadlines.setdefault(timeout_s, Deadlines(timeout_s))

    def _parse(self, url: str) -> URL:
        if len(self._urls) >= _URLS_KEPT:  # tool names can be anything a policy wrote
            self._urls.clear()
        target = self._urls[url] = URL(url, encoded=True)
        return target


def _drain(closing: object) -> None:
    """Run an awaitable that waits for nothing, so that it doesn't warn of being dropped."""
    steps = closing.__await__()  # type: ignore[attr-defined]
    try:
        next(steps)
    except StopIteration:
        return
    steps.close()


def _reply(answer: aiohttp.ClientResponse, content: bytes) -> Reply:
    got = answer.headers
    return Reply(
        answer.status,
        got.get("Content-Type", ""),
        content,
        tuple(got.getall("Set-Cookie", ())),
        got.get("Retry-After", ""),
        got.get("Location", ""),
    )


def _at_the_seam(error: Exception) -> TransportError:
    if isinstance(error, aiohttp.ClientConnectorError):
        return TransportError(_reason(error), reached=False, refused=is_refused(error))
    if isinstance(error, aiohttp.ClientPayloadError):
        return TransportError("the answer broke off in its body")
    if isinstance(error, aiohttp.ClientResponseError):
        return BrokenReplyError(f"the answer is no HTTP: {error.message}")
    if isinstance(error, aiohttp.ClientError | OSError):
        return TransportError(_reason(error))
    # yarl's and the header writer's ValueErrors
    return BrokenReplyError(f"the request can't be sent: {error}")


def _reason(error: BaseException) -> str:
    """An OS error's own words, without addresses and types."""
    inner = getattr(error, "os_error", error)
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
