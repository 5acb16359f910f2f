"""What goes in beside a request's body, and what comes out: bytes and headers. No HTTP here."""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says beside its body.

    Attributes:
        session: the session it names; empty for none.
        idempotency_key: of a call that may be sent again; empty for none.
        retry: how often the client has sent this call before.
    """

    session: str = ""
    idempotency_key: str = ""
    retry: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that isn't streamed.

    Attributes:
        body: JSON, encoded.
        headers: `x-rlbridge-session`, `x-rlbridge-call`, `x-rlbridge-prompt`, ...
        lost: to be called if it could not be delivered, so that a client that asks again gets
            this answer and not another.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class StreamedReply:
    r"""A reply in server-sent events.

    Attributes:
        events: encoded, `data: ...\n\n` each; ends with `[DONE]` where the API has it.
        headers: as `Reply`'s.
    """

    events: AsyncGenerator[bytes, None]
    headers: Mapping[str, str] = field(default_factory=dict)


NOBODY = Caller()
