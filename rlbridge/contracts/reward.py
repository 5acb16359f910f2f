"""A reward that is known, or a reason why it is not. Refuses numbers nobody computed.

A verifier that could not be asked did not answer 0.0: the two are different types here, and an
`InvalidReward` has no number to read by accident. What a framework does with an invalid reward
(mask the sample, as a rule) is its adapter's business.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Final, Literal

from rlbridge.errors import ContractError

MAX_REWARD: Final = 1e15
"""Trainers carry rewards in float32, where the squares of a deviation overflow from about 1e19 on
and rewards themselves from 3.4e38: one such reward makes a whole group's advantages NaN."""


class Fault(StrEnum):
    """Who is to blame for a reward that could not be computed."""

    INFRASTRUCTURE = "infrastructure"
    """The server or the way to it; asking again later may succeed."""
    DATA = "data"
    """This row or this response; asking again will fail again."""


class FailureClass(StrEnum):
    """Why a reward is invalid. The values are metric names (`gym/invalid/<class>`)."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    SERVER_ERROR = "server_error"
    """A status of 500 or more, or a verifier of our own that crashed."""
    RATE_LIMITED = "rate_limited"
    """A status of 429."""
    BAD_ROW = "bad_row"
    """Another status of 400 to 499: the verifier refuses this row or this response."""
    WRONG_SERVER = "wrong_server"
    """A redirect, 401, 403, 404 or 405: not this route, or not for us; no row's fault."""
    MALFORMED_BODY = "malformed_body"
    """Not JSON, not an object, or cut short."""
    NON_FINITE = "non_finite"
    """The reward is NaN, infinite, or beyond `MAX_REWARD`, where trainers' arithmetic overflows."""
    MISSING_REWARD = "missing_reward"
    """The reward is absent, null or not a number."""
    LOST_SESSION = "lost_session"
    """The server scored another session than the one this rollout seeded."""
    UNAVAILABLE = "unavailable"
    """Not asked: the circuit breaker is open after too many failures."""
    REPORTED = "reported"
    """The environment itself says its reward is the product of a failure."""

    @property
    def fault(self) -> Fault:
        """Whether asking again can help (infrastructure) or not (data)."""
        return Fault.DATA if self in _DATA_FAULTS else Fault.INFRASTRUCTURE


_DATA_FAULTS = frozenset(
    {FailureClass.BAD_ROW, FailureClass.NON_FINITE, FailureClass.MISSING_REWARD}
)


@dataclass(frozen=True, slots=True)
class ValidReward:
    """A reward that a verifier computed.

    Attributes:
        value: the reward, finite and at most `MAX_REWARD` either way.
        components: named parts of it (`reward_components`), each finite.
        mask_sample: the environment asks to keep this sample out of the loss.
        attempts: how many requests it took; 0 from the cache. Like the next two, it says how
            the reward was come by, and two rewards that differ only there are equal.
        latency_s: seconds from the call to the reward, waits and retries included.
        from_cache: no request of its own was sent: cached, or shared with an equal call.
        extracted: what the verifier took as the answer, where it says; for people, and for
            counting majorities.

    Raises:
        ContractError: the value is no reward (`is_reward`), or a component is not a finite number.
    """

    valid: ClassVar[Literal[True]] = True

    value: float
    components: Mapping[str, float] = field(default_factory=dict)
    mask_sample: bool = False
    attempts: int = field(default=1, compare=False)
    latency_s: float = field(default=0.0, compare=False)
    from_cache: bool = field(default=False, compare=False)
    extracted: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not is_reward(self.value):
            raise ContractError(
                f"a reward must be a finite number of at most {MAX_REWARD:g}, got {self.value!r}; "
                "a reward that could not be computed is an InvalidReward"
            )
        if not self.components:
            return
        for name, part in self.components.items():
            if not is_finite_number(part):
                raise ContractError(f"reward component {name!r} must be finite, got {part!r}")


@dataclass(frozen=True, slots=True)
class InvalidReward:
    """Why there is no reward. It has no number on purpose.

    Attributes:
        failure: the class of the failure; `failure.fault` says whom to blame.
        detail: what happened in words, the server's own where it has some.
        status: the HTTP status of the last answer, if there was one.
        attempts: how many times the verifier was asked; not part of equality, like the last two.
        reported: the environment's own failure class (`_ng_failure_class`), if it gave one.
        latency_s: seconds from the call to giving up, waits and retries included.
        from_cache: the failure of an equal call that was in flight.
    """

    valid: ClassVar[Literal[False]] = False

    failure: FailureClass
    detail: str
    status: int | None = None
    attempts: int = field(default=0, compare=False)
    reported: str | None = None
    latency_s: float = field(default=0.0, compare=False)
    from_cache: bool = field(default=False, compare=False)

    @property
    def fault(self) -> Fault:
        """Infrastructure (may succeed later) or data (will fail again)."""
        return self.failure.fault


Reward = ValidReward | InvalidReward


def is_reward(value: object) -> bool:
    """True for a finite int or float that trainers can compute with, see `MAX_REWARD`."""
    return is_finite_number(value) and abs(value) <= MAX_REWARD  # type: ignore[arg-type]


def is_finite_number(value: object) -> bool:
    """True for a finite int or float; False for bool, strings, None, NaN and infinities."""
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the range of float
        return False
