"""Failures as exceptions, for the calls that have no reward to put them in, and back."""

from rlbridge.contracts.reward import FailureClass, InvalidReward
from rlbridge.errors import (
    GymConnectionError,
    GymError,
    GymReplyError,
    GymStatusError,
    GymTimeoutError,
)
from rlbridge.gym.replies import Failure

_UNREACHED = frozenset({FailureClass.CONNECTION, FailureClass.UNAVAILABLE})


def gym_error(failure: Failure, url: str, attempts: int) -> GymError:
    """The exception for a failed call to `url`."""
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    message = f"{url} failed after {times}: {failure.detail}"
    if failure.status is not None and failure.status != 200:
        return GymStatusError(
            message, status=failure.status, detail=failure.detail, url=url, attempts=attempts
        )
    if failure.failure is FailureClass.TIMEOUT:
        return GymTimeoutError(message, url=url, attempts=attempts)
    if failure.failure in _UNREACHED:
        return GymConnectionError(message, url=url, attempts=attempts)
    return GymReplyError(message, url=url, attempts=attempts)


START_ONE = (
    "Start one (`rlbridge gym serve arithmetic --port N`, or a NeMo Gym resources server), or set "
    "gym.url to one that runs."
)
"""What to do where no reward server answers."""


def no_server_error(failure: Failure, url: str, attempts: int, advice: str) -> GymError:
    """The exception for a server that gives no sign of life, with what to do about it."""
    message = f"no Gym server answers at {url} ({attempts} attempts): {failure.detail}. {advice}"
    kind = GymTimeoutError if failure.failure is FailureClass.TIMEOUT else GymConnectionError
    return kind(message, url=url, attempts=attempts)


def invalid_reward(error: GymError, *, lost: str = "", latency_s: float = 0.0) -> InvalidReward:
    """The reward that a failed seed or tool call leaves: none, for this reason.

    Args:
        error: what stopped the rollout's environment.
        lost: why its session can't be trusted any more (`GymSession.lost`); empty if it can.
        latency_s: seconds until it failed.
    """
    status = error.status if isinstance(error, GymStatusError) else None
    if lost:
        failure = FailureClass.LOST_SESSION
    elif isinstance(error, GymTimeoutError):
        failure = FailureClass.TIMEOUT
    elif isinstance(error, GymConnectionError):
        failure = FailureClass.CONNECTION
    elif status is None:
        failure = FailureClass.MALFORMED_BODY
    elif status >= 500:
        failure = FailureClass.SERVER_ERROR
    elif status == 429:
        failure = FailureClass.RATE_LIMITED
    elif status in (401, 403, 404, 405):
        failure = FailureClass.WRONG_SERVER
    else:
        failure = FailureClass.BAD_ROW
    return InvalidReward(failure, lost or str(error), status, error.attempts, latency_s=latency_s)
