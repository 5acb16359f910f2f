"""Who may call the gateway: one secret for all of it, and one derived from it for each session.

A session's token opens `/s/{id}/...` and nothing else, so an agent can be given a policy without
being given the other rollouts. It is computed, not kept: a restarted gateway knows it still.
Refuses to write a secret where others can read it, and to compare secrets byte by byte.
"""

import hashlib
import hmac
import os
import secrets
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from rlbridge.errors import ConfigError

OPEN_ROUTES: Final = frozenset({"/", "/health", "/ready"})
_SESSION_PREFIX: Final = "/s/"
_MIN_TOKEN: Final = 16


class Access:
    """Decides about requests by their path and their `Authorization` header.

    Args:
        secret: the gateway's token.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._digest = _digest(self._secret)

    def session_token(self, session: str) -> str:
        """The token of one session: `s-` and 64 hexadecimal digits."""
        return _session_token(self._secret, session)

    def allows(self, path: str, authorization: bytes, session: str = "") -> bool:
        """Whether a request may pass.

        Args:
            path: of the request, percent-decoded once, as ASGI gives it.
            authorization: the header's value; empty if there was none.
            session: what the session header says; empty if there was none.
        """
        if path in OPEN_ROUTES:
            return True
        scheme, _, given = authorization.partition(b" ")
        given = given.strip()
        if scheme.lower() != b"bearer" or not given:
            return False
        if hmac.compare_digest(_digest(given), self._digest):
            return True
        named = _session_of(path, session)
        if named is None:
            return False
        expected = self.session_token(named).encode()
        return hmac.compare_digest(_digest(given), _digest(expected))


def read_or_make_token(path: Path) -> str:
    """The token in `path`; if there is no such file, a new one that only its owner can read.

    Raises:
        ConfigError: the file can't be read or made, others can read it, or its token is short.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"can't make the token file {path}: {error.strerror}") from error
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the token file {path}: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"others can read the token file {path}; run `chmod 600 {path}`")
    if len(token) < _MIN_TOKEN:
        raise ConfigError(
            f"the token in {path} has {len(token)} characters; use {_MIN_TOKEN} or more, or remove "
            "the file and let the gateway make one"
        )
    return token


def _session_of(path: str, header: str) -> str | None:
    """The one session a request is about; None if it is about none, or about two."""
    if path.startswith(_SESSION_PREFIX):
        named = path[len(_SESSION_PREFIX) :].partition("/")[0]
        return named if named and header in ("", named) else None
    about_one = header and (path.startswith("/v1/") or path == "/tokenize")
    return header if about_one else None


def _session_token(secret: bytes, session: str) -> str:
    return "s-" + hmac.new(secret, session.encode(), hashlib.sha256).hexdigest()


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
