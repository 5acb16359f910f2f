"""What a server answered, read with suspicion. Refuses numbers that are no rewards.

Pure: a `Reply` goes in; a reward, JSON data or a `Failure` comes out, never an exception.
The reply's echo of the request is not read: it drops and rewrites token fields in silence.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import orjson

from rlbridge.contracts.reward import (
    MAX_REWARD,
    FailureClass,
    InvalidReward,
    Reward,
    ValidReward,
    is_finite_number,
    is_reward,
)
from rlbridge.contracts.wire import (
    EXTRACTED_ANSWER,
    FAILURE_CLASS,
    INSTANCE_CONFIG,
    JUDGE_ERROR,
    MASK_SAMPLE,
    REWARD,
    REWARD_COMPONENTS,
)

DETAIL_LIMIT: Final = 300

_RETRIED: Final = frozenset(
    {
        FailureClass.TIMEOUT,
        FailureClass.CONNECTION,
        FailureClass.SERVER_ERROR,
        FailureClass.RATE_LIMITED,
        FailureClass.MALFORMED_BODY,
    }
)
_CLASSES: Final = frozenset(FailureClass)
_WRONG_SERVER: Final = frozenset({401, 403, 404, 405, 407})


class Reply(NamedTuple):
    """One HTTP answer, whole.

    Attributes:
        status: the HTTP status.
        content_type: the header as it came, empty if absent.
        body: all of it.
        set_cookies: the values of all Set-Cookie headers.
        retry_after: the header as it came, empty if absent.
        location: the header as it came, empty if absent.
    """

    status: int
    content_type: str
    body: bytes
    set_cookies: tuple[str, ...] = ()
    retry_after: str = ""
    location: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call has no result (yet).

    Attributes:
        failure: its class.
        detail: what happened, shortened; the server's words where it has some.
        status: the HTTP status, if there was an answer.
        retry_after_s: the wait the server asked for, in seconds.
        reached: False when the request never got to a server (refused, unknown name).
        reported: the environment's own failure class.
        final: False where another attempt may be made, if the class allows it.
    """

    failure: FailureClass
    detail: str
    status: int | None = None
    retry_after_s: float | None = None
    reached: bool = True
    reported: str | None = None
    final: bool = False

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when sent again."""
        return self.failure in _RETRIED and not self.final

    def invalid(self, attempts: int, latency_s: float) -> InvalidReward:
        """The reward this failure amounts to."""
        return InvalidReward(
            self.failure, self.detail, self.status, attempts, self.reported, latency_s
        )


def read_reward(reply: Reply, attempts: int, latency_s: float) -> Reward | Failure:
    """A reward from the answer of /verify (or of an agent's /run).

    Returns a `Failure` where the server didn't judge; a reward that came but is no finite
    number, too large, or reported as the product of a failure, is a `Failure` too.
    """
    body = read_object(reply)
    if isinstance(body, Failure):
        return body
    return reward_in(body, attempts, latency_s)


def reward_in(body: Mapping[str, Any], attempts: int, latency_s: float) -> Reward | Failure:
    """The reward in a verify reply's JSON object; see `read_reward`."""
    reported = body.get(FAILURE_CLASS)
    if reported is not None:
        words = body.get(JUDGE_ERROR) or "the environment reports a failure"
        name = _shorten(reported)
        # Our own servers say our own classes, and a bad row stays one over the wire.
        kind = FailureClass(name) if name in _CLASSES else FailureClass.REPORTED
        return Failure(kind, _shorten(words), 200, reported=name, final=True)
    value = body.get(REWARD)
    if not is_reward(value):
        return _no_reward(value, REWARD in body)
    components: dict[str, float] = {}
    parts = body.get(REWARD_COMPONENTS)
    if parts is not None and isinstance(parts, Mapping):
        for name, part in parts.items():
            if is_finite_number(part):
                components[name] = float(part)
            elif isinstance(part, int | float) and not isinstance(part, bool):
                detail = f"$.{REWARD_COMPONENTS}.{name} is {part!r}, not a finite number"
                return Failure(FailureClass.NON_FINITE, _shorten(detail), 200)
    masked = body.get(MASK_SAMPLE) is True
    if not masked and INSTANCE_CONFIG in body:  # where one environment puts it
        inner = body[INSTANCE_CONFIG]
        masked = isinstance(inner, Mapping) and inner.get(MASK_SAMPLE) is True
    answer = body.get(EXTRACTED_ANSWER)
    return ValidReward(
        float(value),  # type: ignore[arg-type]
        components,
        masked,
        attempts,
        latency_s,
        extracted=answer if isinstance(answer, str) else None,
    )


def read_object(reply: Reply) -> dict[str, Any] | Failure:
    """The JSON object of a 200 answer."""
    body = read_json(reply)
    if type(body) is dict or type(body) is Failure:
        return body
    detail = f"the answer is JSON, but a {type(body).__name__} and not an object"
    return Failure(FailureClass.MALFORMED_BODY, detail, reply.status)


def read_json(reply: Reply) -> Any:
    """The JSON of a 200 answer, or a `Failure`."""
    if reply.status != 200:
        return status_failure(reply)
    kind = reply.content_type
    if kind != "application/json" and "json" not in kind.partition(";")[0].lower():
        detail = f"the answer is {_shorten(kind) or 'untyped'}, not application/json"
        return Failure(FailureClass.MALFORMED_BODY, detail, reply.status)
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError as error:
        return _loads_lenient(reply, str(error))


def status_failure(reply: Reply) -> Failure:
    """The failure behind a status that is not 200."""
    status = reply.status
    words = server_words(reply.body)
    wait_s = retry_after_s(reply.retry_after) if reply.retry_after else None
    if status == 429:
        kind = FailureClass.RATE_LIMITED
    elif status >= 500 or status == 425:
        kind = FailureClass.SERVER_ERROR
    elif status == 408:
        kind = FailureClass.TIMEOUT
    elif 300 <= status < 400:
        kind = FailureClass.WRONG_SERVER
        words = f"redirect to {_shorten(reply.location.partition('?')[0])}, not followed"
    elif status in _WRONG_SERVER:
        kind = FailureClass.WRONG_SERVER
    elif status >= 400:
        kind = FailureClass.BAD_ROW
    else:
        kind = FailureClass.MALFORMED_BODY
        words = words or "an answer without a reward"
    return Failure(kind, f"{status}: {words}" if words else str(status), status, wait_s)


def server_words(body: bytes) -> str:
    """What an error body says, shortened: FastAPI's `detail` list as `path: message`."""
    try:
        data = orjson.loads(body) if body else ""
    except orjson.JSONDecodeError:
        return _shorten(body[:DETAIL_LIMIT].decode("utf-8", "replace"))
    if isinstance(data, dict) and "detail" in data:
        data = data["detail"]
    if isinstance(data, list):
        return _shorten("; ".join(_validation_line(item) for item in data[:4]))
    return _shorten(data)


def retry_after_s(header: str) -> float | None:
    """Seconds a Retry-After header asks for (a number, or an HTTP date), or None."""
    try:
        wait_s = float(header)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(wait_s, 0.0) if math.isfinite(wait_s) else None


def _loads_lenient(reply: Reply, why: str) -> Any:
    """Python's json takes NaN and Infinity, which must be told from a broken body."""
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        size = len(reply.body)
        detail = f"the answer is not JSON ({size} bytes): {_shorten(why)}"
        return Failure(FailureClass.MALFORMED_BODY, detail, reply.status)


def _no_reward(value: object, present: bool) -> Failure:
    if isinstance(value, int | float) and not isinstance(value, bool):
        why = f", beyond {MAX_REWARD:g}" if is_finite_number(value) else ""
        return Failure(FailureClass.NON_FINITE, f"$.{REWARD} is {_shorten(value)}{why}", 200)
    shown = repr(_shorten(value)) if isinstance(value, str) else _shorten(value)
    what = f"is {shown}, not a number" if present else "is missing"
    return Failure(FailureClass.MISSING_REWARD, f"$.{REWARD} {what}", 200)


def _validation_line(item: object) -> str:
    if not isinstance(item, Mapping):
        return _shorten(item)
    loc = item.get("loc")
    where = ".".join(_shorten(part) for part in loc) if isinstance(loc, list) else ""
    return f"{where}: {_shorten(item.get('msg'))}" if where else _shorten(item.get("msg"))


def _shorten(value: object) -> str:
    """`value` in one short line; of anything nested only the type, for repr() may not return."""
    if isinstance(value, str):
        text = " ".join(value[: 4 * DETAIL_LIMIT].split())
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    elif isinstance(value, int | float):
        text = str(value)
    else:
        text = "an array" if isinstance(value, list) else "an object"
    return text if len(text) <= DETAIL_LIMIT else text[: DETAIL_LIMIT - 3] + "..."
