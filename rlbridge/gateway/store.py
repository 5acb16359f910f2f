"""The sessions a gateway remembers: bounded in number, tokens and idle time. Loses none in silence.

Where calls are captured, a session that is forgotten comes back from disk when it is asked for.
Where they aren't, an idle session is dropped when it expires, and asking for it is a 410 that
says so; nothing is dropped for want of room: new sessions get a 503 instead. Sessions that
nobody named give way first: their clients carry their tokens with them.
"""

import asyncio
import itertools
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from rlbridge.gateway.calls import Call
from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.config import SessionsConfig
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.records import open_record, restored
from rlbridge.gateway.sessions import Session

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~@=+-]{0,127}")
# Names of dropped sessions that are remembered, to tell a client why its session isn't there.
_DROPPED = 100_000
# Sessions looked at when some must go.
_AT_ONCE = 32

Echo = tuple[int, int, bytes]


class SessionStore:
    """Sessions by name.

    Args:
        config: the bounds.
        log: where calls are captured; None for nowhere.
        clock: seconds, monotonic.

    Attributes:
        held: tokens in memory, all sessions together.
    """

    def __init__(
        self,
        config: SessionsConfig,
        log: CaptureLog | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._log = log
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._dropped: OrderedDict[str, str] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Session]] = {}
        self._echoes: dict[Echo, tuple[str, int]] = {}
        self.held = 0

    def __len__(self) -> int:
        return len(self._sessions)

    async def get(self, name: str, *, create: bool = False) -> Session:
        """The session of this name.

        Args:
            name: as a client gave it.
            create: make it if nobody knows it.

        Raises:
            ApiError: 400 for a name that can't be one, 404 for one nobody knows, 410 for one
                that was dropped, 503 where there is no room.
        """
        session = self._sessions.get(name)
        if session is None:
            session = await self._find(name, create=create)
        self._touch(session)
        return session

    def anonymous(self) -> Session:
        """A new session that nobody named."""
        session = Session(f"anon-{uuid4().hex}", anonymous=True)
        self._admit(session)
        return session

    async def open(self, name: str, group_id: str, metadata: Mapping[str, Any]) -> Session:
        """A session with a group and metadata; found again if it was opened before."""
        session = await self.get(name or uuid4().hex, create=True)
        if group_id or metadata:
            session.group_id = group_id or session.group_id
            session.metadata.update(metadata)
            session.recorded = False
            self.record(session)
        return session

    def echoed(self, echo: Echo) -> str | None:
        """The anonymous session of which a client brought an answer's tokens back."""
        found = self._echoes.get(echo)
        return found[0] if found is not None and found[0] in self._sessions else None

    def took(self, session: Session, call: Call) -> None:
        """A session has taken up a call: count it, and know its tokens when they come back."""
        self.held += call.held
        if session.anonymous:
            self._echoes[echo_of(call)] = session.name, call.number
        self._has_room(for_one_more=False)

    async def end(self, name: str) -> None:
        """Forget a session for good.

        Raises:
            ApiError: as `get`.
        """
        session = await self.get(name)
        session.ended = True
        if self._log is not None and session.recorded:
            self._log.append(name, "end", {})
        self._forget(session)
        self._drop(name, "was ended by its client")

    def record(self, session: Session) -> None:
        """Capture that a session began, once."""
        if self._log is not None and not session.recorded:
            self._log.append(session.name, "open", open_record(session))
        session.recorded = True

    def holds(self, name: str) -> bool:
        """Whether a session is in memory, or on its way there."""
        return name in self._sessions or name in self._loading

    def give_up(self, names: Iterable[str], why: str) -> None:
        """Answer a 410 from now on to who asks for these sessions, none of which is in memory."""
        for name in names:
            self._drop(name, why)

    def expire(self) -> None:
        """Forget what has been idle for too long."""
        horizon = self._clock() - self._config.idle_expiry_s
        old = itertools.takewhile(lambda s: s.used_s < horizon, self._sessions.values())
        for session in [session for session in old if session.in_flight == 0]:
            self._forget(session)
            if not session.anonymous and not self._captured(session):
                idle_s = self._config.idle_expiry_s
                self._drop(session.name, f"was idle for {idle_s:g} s and isn't captured")

    async def _find(self, name: str, *, create: bool) -> Session:
        if not _NAME.fullmatch(name):
            raise ApiError(
                "a session's ID is 1 to 128 letters, digits and . _ : ~ @ = + -, and begins with "
                "a letter or digit",
                param="session",
            )
        if self._log is not None and name in self._log:
            return await self._loaded(name, self._log)
        if name in self._dropped:
            raise ApiError(
                f"session {name!r} {self._dropped[name]}; start another",
                status=410,
                param="session",
                code="session_gone",
            )
        if not create:
            raise ApiError(
                f"there is no session {name!r}",
                status=404,
                param="session",
                code="session_not_found",
            )
        session = Session(name)
        self._admit(session)
        return session

    async def _loaded(self, name: str, log: CaptureLog) -> Session:
        """A session from disk; asked for twice at once, it is read once."""
        task = self._loading.get(name)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(lambda: restored(name, log.records(name))))
            self._loading[name] = task
        try:
            session = await asyncio.shield(task)
        except FileNotFoundError as error:
            raise ApiError(
                f"the captures of session {name!r} were deleted; start another",
                status=410,
                param="session",
                code="session_gone",
            ) from error
        finally:
            self._loading.pop(name, None)
        if name not in self._sessions:
            self._admit(session)
            self.held += session.held
            if session.anonymous:
                for call in session.calls:
                    self._echoes[echo_of(call)] = name, call.number
        return self._sessions[name]

    def _admit(self, session: Session) -> None:
        self.expire()
        if not self._has_room(for_one_more=True):
            raise ApiError(
                f"no room for another session: {len(self._sessions)} of them hold {self.held} "
                "tokens. End some (DELETE /s/{id}), raise sessions.max_sessions or max_tokens, or "
                "set capture.folder so that idle ones wait on disk",
                status=503,
                code="too_many_sessions",
                retry_after_s=5.0,
            )
        session.used_s = self._clock()
        self._sessions[session.name] = session

    def _has_room(self, *, for_one_more: bool) -> bool:
        """Whether the bounds hold, once idle sessions that lose nothing by it have given way."""
        config = self._config
        while True:
            count = len(self._sessions) + for_one_more
            if count <= config.max_sessions and self.held <= config.max_tokens:
                return True
            may_go = (s for s in self._idle() if s.anonymous or self._captured(s))
            session = next(may_go, None)
            if session is None:
                return False
            self._forget(session)

    def _captured(self, session: Session) -> bool:
        return self._log is not None and session.name in self._log

    def _idle(self) -> list[Session]:
        """Some of the sessions without a call in flight, the idlest first."""
        idle = (session for session in self._sessions.values() if session.in_flight == 0)
        return list(itertools.islice(idle, _AT_ONCE))

    def _touch(self, session: Session) -> None:
        session.used_s = self._clock()
        self._sessions.move_to_end(session.name)

    def _forget(self, session: Session) -> None:
        if self._sessions.pop(session.name, None) is None:
            return
        self.held -= session.held
        if session.anonymous:
            for call in session.calls:
                if self._echoes.get(echo_of(call), ("", 0))[0] == session.name:
                    del self._echoes[echo_of(call)]

    def _drop(self, name: str, why: str) -> None:
        self._dropped[name] = why
        while len(self._dropped) > _DROPPED:
            self._dropped.popitem(last=False)


def echo_of(call: Call) -> Echo:
    """What a client's copy of a call's tokens is known by; the history is compared besides."""
    sampled = b"".join(span.token_ids.tobytes() for span in call.generation)
    return call.prompt_length, call.sampled, sampled
