"""What makes two verifies the same question: server, task and visible response.

IDs, timestamps, the rollout's number and token fields are left out, for they differ between
samples that read the same. Everything else counts: sharing too little costs a request, sharing
too much would invent a reward.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from rlbridge.contracts.wire import RESPONSE, ROLLOUT_INDEX
from rlbridge.gym.bodies import MADE_ID, to_json

_NOT_TASK: Final = frozenset({RESPONSE, ROLLOUT_INDEX})
_NOT_VISIBLE: Final = frozenset({"id", "created_at", "output"})
_NOT_VISIBLE_IN_ITEM: Final = frozenset({"id", "status"})


def request_key(server: str, body: Mapping[str, Any], payload: bytes) -> bytes:
    """A 16-byte digest of what a /verify body asks.

    Args:
        server: what stands for the server; URLs of one server share a name.
        body: the row's fields and the Responses object, from `verify_body`; left as it is.
        payload: the same as JSON.
    """
    digest = blake2b(server.encode(), digest_size=16)
    response = body[RESPONSE]
    if response["id"] == MADE_ID and ROLLOUT_INDEX not in body:
        digest.update(payload)  # made here from text: nothing in it differs between samples
        return digest.digest()
    task = {key: body[key] for key in body if key not in _NOT_TASK}
    frame = {key: response[key] for key in response if key not in _NOT_VISIBLE}
    question = [task, frame, _visible(response["output"])]
    digest.update(to_json(question, canonical=True))
    return digest.digest()


def _visible(items: list[Any]) -> list[Any]:
    """Items without what differs between equal samples; call IDs by order of appearance."""
    calls: dict[str, int] = {}
    seen = []
    for item in items:
        entry = {key: item[key] for key in item if key not in _NOT_VISIBLE_IN_ITEM}
        if "call_id" in entry:
            call_id = str(entry["call_id"])
            entry["call_id"] = calls.setdefault(call_id, len(calls))
        seen.append(entry)
    return seen
