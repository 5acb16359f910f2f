"""The fields of a row that transforms look at: reading these alone takes half the time of all.

Refuses what `orjson` refuses, and reads the whole row where it isn't shaped as most are, so that
what is said of such a row is said of all of it.
"""

from typing import Any, Final, TypedDict

import msgspec
import orjson


class _Request(TypedDict, total=False):
    input: Any
    instructions: Any
    tools: Any


class _Response(TypedDict, total=False):
    output: Any
    choices: Any


class Fields(TypedDict, total=False):
    """A row without the rest; `contracts.wire` says what the names mean."""

    responses_create_params: _Request
    response: _Response | str | None
    output: Any
    reward: float | None
    mask_sample: bool | None
    _ng_failure_class: str | None
    # The usual names of the right answer, `grpo.GROUND_TRUTHS`.
    ground_truth: Any
    expected_answer: Any
    answer: Any
    label: Any
    target: Any


_decode: Final = msgspec.json.Decoder(Fields).decode


def read_fields(text: bytes) -> Any:
    """The fields of a line's row, or all of it.

    Integers beyond 64 bits are `int`, where `orjson` makes `float` of them and then can't write
    them, or refuses them; those in fields that nobody reads are no fault.

    Raises:
        orjson.JSONDecodeError: it is no JSON.
    """
    try:
        row = _decode(text)
        if not text.isascii():
            text.decode()  # msgspec doesn't look into the strings that it passes over
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return orjson.loads(text)
    return row
