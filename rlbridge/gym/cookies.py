"""One rollout's cookies, and whether they still name the session that was seeded.

A NeMo Gym server signs `{"session_id": ...}` into a cookie and sets it again on every answer.
Lose it on the way and the server starts a fresh session without a word: the counter reads 0 and
so does the reward. The payload is readable without the key, so a change can be seen.
"""

import base64
import binascii
from typing import Final

import orjson

from rlbridge.gym.replies import Reply

SESSION_ID: Final = "session_id"


class Jar:
    """Cookies of one rollout at one server.

    Attributes:
        lost: why the session can't be trusted any more, or empty.
    """

    def __init__(self, *, required: bool) -> None:
        self._required = required
        self._cookies: dict[str, str] = {}
        self._sessions: dict[str, str] = {}
        self._seeded = False
        self.lost = ""

    @property
    def header(self) -> str:
        """The value of the Cookie header; empty when there are none."""
        return "; ".join(f"{name}={value}" for name, value in self._cookies.items())

    @property
    def names(self) -> list[str]:
        """Names of the cookies held."""
        return list(self._cookies)

    def observe(self, reply: Reply) -> None:
        """Take over what an answer sets, and note it if that is another session."""
        if reply.status != 200:  # an answer from before the session was looked up sets none
            return
        fresh = [_name_and_value(header) for header in reply.set_cookies]
        confirmed = False
        for name, value in fresh:
            session = session_id_in(value)
            known = self._sessions.get(name)
            if session is not None:
                confirmed = True
                if known is not None and known != session:
                    self.lose(f"the answer is from another session than the one seeded ({name})")
                    continue
                self._sessions[name] = session
            elif known is not None:
                self.lose(f"the cookie {name} no longer holds a session")
                continue
            self._cookies[name] = value
        if self._required and not confirmed:
            what = "confirms no session" if self._seeded else "starts no session"
            self.lose(f"the answer sets no session cookie, so it {what}")
        self._seeded = True

    def lose(self, why: str) -> None:
        """Note that the session can't be trusted any more; the first reason counts."""
        self.lost = self.lost or why


def session_id_in(value: str) -> str | None:
    """The session ID inside a signed cookie's payload, unverified; None where there is none."""
    payload = value.partition(".")[0]
    try:
        data = orjson.loads(base64.b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error):
        return None
    session = data.get(SESSION_ID) if isinstance(data, dict) else None
    return session if isinstance(session, str) else None


def _name_and_value(set_cookie: str) -> tuple[str, str]:
    name, _, value = set_cookie.partition(";")[0].partition("=")
    return name.strip(), value.strip().strip('"')
