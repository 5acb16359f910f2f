"""What of a session goes into captures, and a session made of its records again.

A call's record holds what the call added (`rlbridge.gateway.calls`): its size doesn't grow with
the history. Refuses records that don't fit together.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from rlbridge.contracts.codecs.files import reward_from_json, reward_to_json
from rlbridge.contracts.reward import Reward
from rlbridge.contracts.rollout import FinishReason
from rlbridge.contracts.tokens import (
    Encoding,
    LogprobsMode,
    PromptSpan,
    SampledSpan,
)
from rlbridge.errors import ContractError
from rlbridge.gateway.calls import Call
from rlbridge.gateway.history import Node
from rlbridge.gateway.sessions import Root, Session


def open_record(session: Session) -> dict[str, Any]:
    """That a session began."""
    return {
        "anonymous": session.anonymous,
        "group_id": session.group_id,
        "metadata": session.metadata,
    }


def call_record(call: Call, root: Root, node: Node) -> dict[str, Any]:
    """A call that was answered, under the history `node` ends.

    Arrays are left as they are, for orjson to write.
    """
    after, messages = _place(node)
    record: dict[str, Any] = {
        "number": call.number,
        "call_id": call.call_id,
        "root": root.index,
        "after": after,
        "messages": messages,
        "message": call.message,
        "seed": call.seed,
        "base": call.base.number if call.base else -1,
        "added": {"token_ids": call.added.token_ids, "provenance": call.added.provenance},
        "generation": [_span(span) for span in call.generation],
        "finish": call.finish.value,
        "stop_reason": call.stop_reason,
        "sampling": call.sampling,
        "text": call.text,
    }
    if call.added.vocab_size is not None:
        record["vocab_size"] = call.added.vocab_size
    if call.logprobs_mode is not None:
        record["logprobs_mode"] = call.logprobs_mode.value
    if call.encoding is not None and not root.recorded:
        record["encoding"] = [call.encoding.tokenizer, call.encoding.template]
    if not root.recorded:
        record |= {"tools": root.tools, "options": root.options}
        root.recorded = True
    return record


def reward_record(reward: Reward) -> dict[str, Any]:
    """That a session was scored."""
    return {"reward": reward_to_json(reward)}


def failed_record(node: Node, detail: str) -> dict[str, Any]:
    """That a call failed for good."""
    return {"digest": node.digest.hex(), "detail": detail}


def restored(name: str, records: Iterable[Mapping[str, Any]]) -> Session:
    """The session of these records, in the order they were written.

    Raises:
        ContractError: a record lacks something or refers to a call that isn't there.
    """
    session = Session(name, recorded=True)
    encodings: dict[int, Encoding] = {}
    try:
        for record in records:
            _apply(session, record, encodings)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ContractError(f"session {name!r}: a captured record is garbled: {error!r}") from error
    if session.calls:
        session.calls[-1].keep(session.calls[-1].prompt())
    return session


def _apply(session: Session, record: Mapping[str, Any], encodings: dict[int, Encoding]) -> None:
    kind = record["kind"]
    if kind == "open":
        session.anonymous = bool(record["anonymous"])
        session.group_id = record["group_id"]
        session.metadata = dict(record["metadata"])
    elif kind == "call":
        _apply_call(session, record, encodings)
    elif kind == "failed":
        session.failed.add(bytes.fromhex(record["digest"]))
    elif kind == "untokened":
        session.untokened += 1
    elif kind == "reward":
        session.reward = reward_from_json(record["reward"])


def _apply_call(
    session: Session, record: Mapping[str, Any], encodings: dict[int, Encoding]
) -> None:
    index = record["root"]
    if "tools" in record:
        # Roots are told of when first answered, which needn't be the order they were made in.
        root = session.root(record["tools"], record["options"])
        root.recorded = True
        root.index = index
        if "encoding" in record:
            encodings[index] = Encoding(*record["encoding"])
    node = (
        next(root.node for root in session.roots if root.index == index)
        if record["after"] < 0
        else session.answers[record["after"]]
    )
    for message in record["messages"]:
        node = node.find(message) or node.add(message)
    mode, size = record.get("logprobs_mode"), record.get("vocab_size")
    added = record["added"]
    call = Call(
        record["number"],
        record["call_id"],
        session.calls[record["base"]] if record["base"] >= 0 else None,
        PromptSpan(added["token_ids"], added["provenance"], size),
        tuple(
            SampledSpan(
                span["token_ids"], span["logprobs"], span["provenance"],
                span.get("policy_version"), size,
            )
            for span in record["generation"]
        ),
        record["message"],
        record["seed"],
        record["text"],
        FinishReason(record["finish"]),
        record["stop_reason"],
        record["sampling"],
        LogprobsMode(mode) if mode else None,
        encodings.get(index),
    )  # fmt: skip
    session.add(call, node)


def _place(node: Node) -> tuple[int, list[Mapping[str, Any]]]:
    """The call a history goes on from (-1: none) and the messages since."""
    messages: list[Mapping[str, Any]] = []
    at: Node | None = node
    while at is not None and at.parent is not None:
        if at.call is not None:
            return at.call.number, messages[::-1]
        messages.append(at.message)
        at = at.parent
    return -1, messages[::-1]


def _span(span: SampledSpan) -> dict[str, Any]:
    record: dict[str, Any] = {
        "token_ids": span.token_ids,
        "logprobs": span.logprobs,
        "provenance": span.provenance,
    }
    if span.policy_version is not None:
        record["policy_version"] = span.policy_version
    return record
