"""The transport for HTTP/2 and respx mocks. Costs some 20 times aiohttp's CPU a request."""

import asyncio
from collections.abc import Mapping

import httpx

from rlbridge.config import GymConfig
from rlbridge.gym.replies import Reply
from rlbridge.gym.transport import (
    BrokenReplyError,
    ConnectTimeoutError,
    TransportError,
    is_refused,
    request_headers,
    tls_context,
)


class HttpxTransport:
    """Sends by one httpx client; how many requests are in flight is the caller's business."""

    def __init__(self, config: GymConfig) -> None:
        self._max_bytes = int(config.max_reply_mb * 1_000_000)
        self._client = httpx.AsyncClient(
            headers=request_headers(config),
            timeout=httpx.Timeout(None, connect=config.connect_timeout_s),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=config.keepalive_s,
            ),
            verify=tls_context(config),
            http2=config.http2,
            proxy=config.proxy,
            trust_env=False,
            follow_redirects=False,
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
        request = self._client.build_request(method, url, content=body, headers=headers)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.send(request, stream=True)
                try:
                    content = await self._read(answer)
                finally:
                    await answer.aclose()
        except httpx.ConnectTimeout as error:
            raise ConnectTimeoutError("no connection in time") from error
        except httpx.ConnectError as error:
            raise TransportError(
                str(error) or "no connection", reached=False, refused=is_refused(error)
            ) from error
        except (httpx.RemoteProtocolError, httpx.DecodingError) as error:
            raise _protocol_error(error) from error
        except httpx.TimeoutException as error:
            raise TimeoutError(str(error)) from error
        except TimeoutError:  # an OSError too, but the deadline and no connection's end
            raise
        except (httpx.TransportError, OSError) as error:
            raise TransportError(str(error) or type(error).__name__) from error
        finally:
            # The pool is per host and the client would otherwise remember what servers set.
            self._client.cookies.clear()
        return _reply(answer, content)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def abandon(self) -> None:
        """Let go without a loop. httpx has no way to close without one: asyncio may warn."""

    async def _read(self, answer: httpx.Response) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in answer.aiter_bytes():
            size += len(part)
            if size > self._max_bytes:
                raise BrokenReplyError(f"the answer is longer than {self._max_bytes} bytes")
            parts.append(part)
        return b"".join(parts)


def _reply(answer: httpx.Response, content: bytes) -> Reply:
    got = answer.headers
    return Reply(
        answer.status_code,
        got.get("Content-Type", ""),
        content,
        tuple(got.get_list("Set-Cookie")),
        got.get("Retry-After", ""),
        got.get("Location", ""),
    )


def _protocol_error(error: httpx.HTTPError) -> TransportError:
    """Cut short is a lost connection; anything else is no HTTP."""
    words = str(error)
    if "disconnected" in words or "closed" in words or "incomplete" in words:
        return TransportError(words)
    return BrokenReplyError(f"the answer is no HTTP: {words}")
