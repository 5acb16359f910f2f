"""What can go wrong between a client and a reward server, by name, and when it does."""

import random
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from rlbridge.errors import ContractError


class FaultKind(StrEnum):
    """One thing that goes wrong with one answer."""

    RESET = "reset"
    """The connection is reset before any header."""
    RESET_MID_BODY = "reset_mid_body"
    """The connection is reset after half the body."""
    SLOW = "slow"
    """No answer until long after any deadline."""
    SLOW_BODY = "slow_body"
    """Headers at once, then the body a byte at a time, past any deadline."""
    STATUS_500 = "status_500"
    STATUS_503 = "status_503"
    """With Retry-After: 0.05."""
    STATUS_429 = "status_429"
    STATUS_422 = "status_422"
    TRUNCATED_JSON = "truncated_json"
    """A whole answer whose JSON is cut short."""
    WRONG_CONTENT_TYPE = "wrong_content_type"
    """A right body called text/html."""
    NAN = "nan"
    INFINITY = "infinity"
    NULL_REWARD = "null_reward"
    STRING_REWARD = "string_reward"
    TRUE_REWARD = "true_reward"
    MISSING_REWARD = "missing_reward"
    GARBAGE = "garbage"
    """2 MB that are no JSON."""
    REDIRECT = "redirect"
    DROPPED_COOKIE = "dropped_cookie"
    """The answer sets no cookie, as behind a proxy that strips them."""
    SWAPPED_COOKIE = "swapped_cookie"
    """The answer sets another session's cookie."""
    REPORTED = "reported"
    """The environment says that its reward is the product of a failure."""


class Faults:
    """A plan of faults, one a request: by rate, or by script.

    `Faults(rate=0.3, seed=1)` spoils three answers in ten with any kind;
    `Faults(script=["status_500", None])` spoils the first, not the second, and none after.

    Attributes:
        dealt: how often each kind was dealt.
    """

    def __init__(
        self,
        *,
        rate: float = 0.0,
        kinds: Sequence[FaultKind | str] = tuple(FaultKind),
        script: Iterable[FaultKind | str | None] = (),
        seed: int = 0,
    ) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ContractError(f"a fault rate is between 0 and 1, got {rate}")
        self._rate = rate
        self._kinds = [FaultKind(kind) for kind in kinds]
        self._script: Iterator[FaultKind | str | None] = iter(script)
        self._random = random.Random(seed)  # noqa: S311 (repeatable, not secret)
        self.dealt: dict[FaultKind, int] = {}

    def next(self) -> FaultKind | None:
        """The next request's fault, or None."""
        scripted = next(self._script, None)
        kind = None if scripted is None else FaultKind(scripted)
        if kind is None and self._rate and self._random.random() < self._rate:
            kind = self._random.choice(self._kinds)
        if kind is not None:
            self.dealt[kind] = self.dealt.get(kind, 0) + 1
        return kind
