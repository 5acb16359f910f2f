"""What makes two verifies the same question: server, task and visible response.

IDs, timestamps, the rollout's number and token fields are left out, for they differ between
samples that read the same. Everything else counts: sharing too little costs a request, sharing
too much would invent a reward.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from rlbridge.contracts.wire import RESPONSE, ROLLOUT_INDEX
from rlbridge.gym.bodies import to_json

_NOT_TASK: Final = frozenset({RESPONSE, ROLLOUT_INDEX})
_NOT_VISIBLE: Final = frozenset({"id", "created_at", "output"})
_NOT_VISIBLE_IN_ITEM: Final = frozenset({"id", "status"})


def request_key(server: str, body: Mapping[str, Any]) -> bytes:
    """A 16-byte digest of a /verify body as `verify_body` builds it.

    Args:
        server: what stands for the server; URLs of one server share a name.
        body: the row's fields and the Responses object; left as it is.
    """
    task = {key: body[key] for key in body if key not in _NOT_TASK}
    response = body[RESPONSE]
    frame = {key: response[key] for key in response if key not in _NOT_VISIBLE}
    question = [server, task, frame, _visible(response["output"])]
    return blake2b(to_json(question, canonical=True), digest_size=16).digest()


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
