"""The seam between the client and an HTTP library: one method in, one `Reply` out.

A transport sends one request and reads the whole answer before a deadline. It knows nothing of
retries, sessions or rewards, follows no redirect and keeps no cookie. What its library raises
leaves it as a `TransportError`, or a `TimeoutError` for the deadline.
"""

import ssl
from collections.abc import Mapping
from typing import Protocol

from rlbridge.config import GymConfig
from rlbridge.gym.replies import Reply


class TransportError(Exception):
    """The request has no answer.

    Attributes:
        reached: False when no server was reached, so that nothing can have happened there.
        refused: True when the host says that nobody listens there.
    """

    def __init__(self, message: str, *, reached: bool = True, refused: bool = False) -> None:
        super().__init__(message)
        self.reached = reached
        self.refused = refused


class ConnectTimeoutError(TransportError):
    """No connection within `connect_timeout_s`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reached=False)


class BrokenReplyError(TransportError):
    """An answer that is no HTTP, or is longer than `max_reply_mb`."""


class Transport(Protocol):
    """What an HTTP library has to do for the client."""

    async def send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> Reply:
        """Send one request and read the whole answer, connecting included, in `timeout_s`.

        `headers` are sent beside those of `request_headers`.

        Raises:
            TimeoutError: there was no whole answer by then.
            TransportError: there will be none.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections; harmless when called twice."""
        ...

    def abandon(self) -> None:
        """Let go without a loop: the one that the connections belong to is gone."""
        ...


def request_headers(config: GymConfig) -> dict[str, str]:
    """Headers of every request; those of the config win."""
    return {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # short replies, near servers: compression costs more
        "User-Agent": "rlbridge",
        **{name: value.get_secret_value() for name, value in config.headers.items()},
    }


def tls_context(config: GymConfig) -> ssl.SSLContext:
    """Whom to trust: the system's authorities, and `SSL_CERT_FILE` and `SSL_CERT_DIR`.

    Nobody if no URL is https: the authorities take tens of milliseconds to load.
    """
    if any((url or "").startswith("https:") for url in (config.url, *config.urls, config.proxy)):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def is_refused(error: BaseException | None) -> bool:
    """Whether a refused connection is behind `error`, however a library wrapped it."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        if isinstance(error, BaseExceptionGroup):
            return any(is_refused(inner) for inner in error.exceptions)
        error = error.__cause__ or error.__context__
    return False
