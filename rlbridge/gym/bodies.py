"""Request bodies from a dataset row and a response. Refuses what cannot be put in JSON.

`/verify` wants the whole row plus a full Responses object. What no verifier reads, token IDs,
stays on our side: it makes the server 4 to 5 times slower (facts in docs/gym.md). Nothing the
caller hands in is changed, and nothing is copied that need not be.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import orjson

from rlbridge.contracts.wire import (
    CREATE_PARAMS_FIELDS,
    RESPONSE,
    RESPONSES_CREATE_PARAMS,
)
from rlbridge.errors import ContractError
from rlbridge.gym.items import output_items, plain, without_tokens

UnknownParams = Literal["send", "refuse", "drop"]

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
_CANONICAL: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS

MADE_ID: Final = "resp_0"  # the ID of a Responses object that had none of its own

# The seven fields beside `output` without which a verifier answers 422.
_ENVELOPE: Final[dict[str, Any]] = {
    "id": MADE_ID,
    "created_at": 0,
    "model": "policy",
    "object": "response",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}


def responses_object(response: object) -> dict[str, Any]:
    """A full Responses object from text, messages, items, a chat completion or such an object.

    Raises:
        ContractError: `response` is none of these.
    """
    if isinstance(response, str):
        return {**_ENVELOPE, "output": output_items(response)}
    entry = plain(response)
    if not isinstance(entry, Mapping):
        return {**_ENVELOPE, "output": output_items(entry)}
    if "output" in entry and "role" not in entry and entry.get("type") is None:
        full = {**_ENVELOPE, **entry, "output": output_items(entry["output"])}
        for key, default in _ENVELOPE.items():
            if full[key] is None:  # created_at: null is a 422
                full[key] = default
        return full
    choices = entry.get("choices")
    if isinstance(choices, list):
        if not choices or not isinstance(choices[0], Mapping):
            raise ContractError("$.response.choices is empty; a chat completion has one choice")
        return {**_ENVELOPE, "output": output_items([choices[0].get("message")])}
    return {**_ENVELOPE, "output": output_items(entry)}


def row_body(row: Mapping[str, Any], unknown_params: UnknownParams = "send") -> dict[str, Any]:
    """The row as a request body: token fields stripped, a shallow copy.

    Raises:
        ContractError: `row` is no mapping.
    """
    if type(row) is not dict and not isinstance(row, Mapping):
        raise ContractError(f"a row is a dict as in a Gym JSONL line, got {type(row).__name__}")
    body = dict(row)
    params = body.get(RESPONSES_CREATE_PARAMS)
    if type(params) is dict or isinstance(params, Mapping):
        stripped = without_tokens(params.get("input"))
        if stripped is not params.get("input"):
            params = body[RESPONSES_CREATE_PARAMS] = {**params, "input": stripped}
        if unknown_params == "drop" and not CREATE_PARAMS_FIELDS.issuperset(params):
            known = {key: params[key] for key in params if key in CREATE_PARAMS_FIELDS}
            body[RESPONSES_CREATE_PARAMS] = known
    return body


def unknown_params_of(row: Mapping[str, Any]) -> list[str]:
    """Keys of the row's responses_create_params that NeMo Gym 0.4.0 refuses, sorted."""
    params = row.get(RESPONSES_CREATE_PARAMS)
    if not isinstance(params, Mapping) or CREATE_PARAMS_FIELDS.issuperset(params):
        return []
    return sorted(str(key) for key in params if key not in CREATE_PARAMS_FIELDS)


def verify_body(
    row: Mapping[str, Any], response: object, unknown_params: UnknownParams = "send"
) -> dict[str, Any]:
    """The body of /verify: the row's fields and a full Responses object under `response`.

    Raises:
        ContractError: `row` is no mapping, or `response` is nothing a verifier could read.
    """
    body = row_body(row, unknown_params)
    body[RESPONSE] = responses_object(response)
    return body


def to_json(body: object, *, canonical: bool = False) -> bytes:
    """`body` as JSON; `canonical` sorts keys. Lone surrogates become U+FFFD.

    Raises:
        ContractError: something in `body` has no JSON form.
    """
    option = _CANONICAL if canonical else _OPTIONS
    try:
        return orjson.dumps(body, option=option)
    except orjson.JSONEncodeError:
        pass
    try:  # slower: keys that are no strings, text that is no UTF-8
        return orjson.dumps(_encodable(body), option=option | orjson.OPT_NON_STR_KEYS)
    except (orjson.JSONEncodeError, RecursionError) as error:
        raise ContractError(f"the request can't be written as JSON: {error}") from error


def _encodable(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(part) for part in value]
    return value
