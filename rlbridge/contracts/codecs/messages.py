"""Chat messages to Responses items and back. One assistant message is several items.

A Chat assistant message holds reasoning, text and tool calls; in the Responses API each is an
item of its own. Token fields belong to the model call: on the last of its items, and on the
message. Refuses parts that are not text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlbridge.contracts import wire
from rlbridge.errors import ContractError

Json = Mapping[str, Any]
_TEXT_PARTS = {"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal"}


def items_from_message(message: Json, *, item_id: str = "") -> list[dict[str, Any]]:
    """The Responses items of one Chat message.

    Args:
        message: with `role`; `content` a string, a list of text parts or None.
        item_id: prefix of the items' IDs, which the Responses API requires.

    Raises:
        ContractError: an unknown role, content that is not text, or nothing in the message.
    """
    role = message.get("role")
    if role == "tool":
        return [
            {
                "type": "function_call_output",
                "call_id": str(message.get("tool_call_id") or ""),
                "output": text_of(message.get("content")),
            }
        ]
    if role in {"user", "system", "developer"}:
        return [{"type": "message", "role": role, "content": text_of(message.get("content"))}]
    if role != "assistant":
        raise ContractError(f"a message's role is {role!r}, not one of the Chat API's")
    items = _assistant_items(message, item_id)
    if not items:
        raise ContractError("an assistant message has neither text, reasoning nor tool calls")
    items[-1].update({name: message[name] for name in wire.TOKEN_FIELDS if name in message})
    return items


def messages_from_items(items: Iterable[Json]) -> list[dict[str, Any]]:
    """Chat messages of Responses items; items of one model call become one message.

    A model call ends where its token fields are, where its text was followed by text or
    reasoning, and where something else than the assistant speaks.

    Raises:
        ContractError: an item of a type that is not text, reasoning, a call or its output.
    """
    messages: list[dict[str, Any]] = []
    open_message: dict[str, Any] | None = None
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call_output":
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": item.get("call_id"),
                    "content": text_of(item.get("output")),
                }
            )
            open_message = None
        elif kind == "message" and item.get("role") != "assistant":
            messages.append({"role": item.get("role"), "content": text_of(item.get("content"))})
            open_message = None
        else:
            if open_message is None or not _goes_on(open_message, kind):
                open_message = {"role": "assistant", "content": None}
                messages.append(open_message)
            _add_item(open_message, item, str(kind))
            tokens = {name: item[name] for name in wire.TOKEN_FIELDS if item.get(name) is not None}
            open_message.update(tokens)
            open_message = None if tokens else open_message
    return messages


def text_of(content: object) -> str:
    """The text of a message's content: a string, None, or a list of text parts.

    Raises:
        ContractError: an image, a file or another part that is no text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ContractError(
            f"content must be text or a list of parts, got {type(content).__name__}"
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS:
            raise ContractError(
                f"a content part of type {kind!r} is no text; only text is followed"
            )
        texts.append(str(part.get("text", part.get("refusal", ""))))
    return "".join(texts)


def _assistant_items(message: Json, item_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    thought = message.get("reasoning") or message.get("reasoning_content")
    if thought:
        items.append(
            {
                "type": "reasoning",
                "id": f"rs_{item_id}",
                "summary": [{"type": "summary_text", "text": thought}],
            }
        )
    calls = message.get("tool_calls") or ()
    text = text_of(message.get("content"))
    if text or (message.get("content") is not None and not items and not calls):
        items.append(
            {
                "type": "message",
                "id": f"msg_{item_id}",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        )
    items += [
        {
            "type": "function_call",
            "call_id": str(call.get("id") or ""),
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        for call in calls
    ]
    return items


def _goes_on(message: Json, kind: object) -> bool:
    """Whether an item of this kind can belong to the same call as what `message` holds."""
    if kind == "function_call":
        return True
    if message.get("tool_calls"):
        return False
    return kind == "message" and message.get("content") is None


def _add_item(message: dict[str, Any], item: Json, kind: str) -> None:
    if kind == "reasoning":
        parts = item.get("summary") or item.get("content") or ()
        message["reasoning_content"] = message.get("reasoning_content", "") + text_of(parts)
    elif kind == "message":
        message["content"] = text_of(item.get("content"))
    elif kind == "function_call":
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        message.setdefault("tool_calls", []).append(call)
    else:
        raise ContractError(f"an item of type {kind!r} is none this codec follows")
