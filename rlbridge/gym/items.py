"""Responses output items from whatever a framework has. Refuses what is no response at all.

Text, chat messages, Responses items and chat completions all become the item list that a
verifier reads. Known traps of the wire are mended on the way (`../docs/gym.md` lists them):
plain-string content, missing `annotations`, `id` or `call_id`, arguments as an object. Token
fields are left out, never changed in place: the caller's object stays as it was.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from rlbridge.contracts.wire import TOKEN_FIELDS
from rlbridge.errors import ContractError

Item = dict[str, Any]

_TOKEN_FIELDS: Final = frozenset(TOKEN_FIELDS)


def output_items(response: object) -> list[Item]:
    """The output items of `response`: text, a list of messages or items, or one message.

    Raises:
        ContractError: `response` is nothing of the kind.
    """
    if isinstance(response, str):
        return [_text_message(response, 0)]
    if isinstance(response, Mapping):
        return _one(response, 0)
    if isinstance(response, Sequence) and not isinstance(response, bytes | bytearray):
        items: list[Item] = []
        for part in response:
            entry = plain(part)
            if not isinstance(entry, Mapping):
                raise ContractError(
                    f"$.response[{len(items)}] is a {type(part).__name__}; a response list holds "
                    "chat messages or Responses items (dicts)"
                )
            items += _one(entry, len(items))
        return items
    raise ContractError(
        f"a response is text, chat messages, Responses items or a Responses object, "
        f"got {type(response).__name__}"
    )


def plain(value: object) -> object:
    """`value`, or its plain data where it is a pydantic model (openai's types are)."""
    dump = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json", exclude_unset=True)


def without_tokens(items: object) -> object:
    """`items` without token fields: itself where there are none, else a copy of what changed."""
    if not isinstance(items, list):
        return items
    if all(not isinstance(item, dict) or _TOKEN_FIELDS.isdisjoint(item) for item in items):
        return items
    return [_stripped(item) if isinstance(item, dict) else item for item in items]


def _stripped(item: Mapping[str, Any]) -> Item:
    return {key: value for key, value in item.items() if key not in _TOKEN_FIELDS}


def _one(entry: Mapping[str, Any], index: int) -> list[Item]:
    """One chat message or Responses item as Responses items."""
    kind = entry.get("type")
    if kind is None or kind == "message":
        if "role" not in entry:
            raise ContractError(
                f"$.response[{index}] has neither a type nor a role; it is no message and no item"
            )
        return _message(entry, index)
    item = _stripped(entry)
    if kind == "function_call":
        if not isinstance(item.get("arguments"), str):
            item["arguments"] = orjson.dumps(item.get("arguments") or {}).decode()
        if not item.get("call_id"):
            item["call_id"] = item.get("id") or f"call_{index}"
    elif kind == "function_call_output":
        if not isinstance(item.get("output"), str):
            item["output"] = orjson.dumps(item.get("output")).decode()
    elif kind == "reasoning":
        item.setdefault("id", f"rs_{index}")
        item.setdefault("summary", [])
    return [item]


def _message(entry: Mapping[str, Any], index: int) -> list[Item]:
    role = entry["role"]
    if role == "tool":
        output = _text_of(entry.get("content"))
        call_id = entry.get("tool_call_id") or f"call_{index}"
        return [{"type": "function_call_output", "call_id": call_id, "output": output}]
    if role != "assistant":
        return [_input_message(entry)]
    items: list[Item] = []
    reasoning = entry.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        summary = [{"type": "summary_text", "text": reasoning}]
        items.append({"type": "reasoning", "id": f"rs_{index}", "summary": summary})
    calls = entry.get("tool_calls") or ()
    if entry.get("content") or not calls:
        items.append(_assistant_message(entry, index + len(items)))
    items += [_function_call(call, index + len(items) + n) for n, call in enumerate(calls)]
    return items


def _assistant_message(entry: Mapping[str, Any], index: int) -> Item:
    content = entry.get("content")
    if not isinstance(content, list):
        message = _text_message("" if content is None else str(content), index)
    else:
        message = _text_message("", index)
        message["content"] = [_output_part(part) for part in content]
    message["id"] = entry.get("id") or message["id"]
    message["status"] = entry.get("status") or "completed"
    return message


def _output_part(part: object) -> object:
    if isinstance(part, str):
        return {"type": "output_text", "text": part, "annotations": []}
    if isinstance(part, Mapping):
        if part.get("type") in ("text", "input_text"):  # chat's name for the same thing
            return {"type": "output_text", "text": part.get("text", ""), "annotations": []}
        if part.get("type") == "output_text" and part.get("annotations") is None:
            return {**part, "annotations": []}
    return part


def _input_message(entry: Mapping[str, Any]) -> Item:
    content = entry.get("content")
    if not isinstance(content, list):
        # A plain string here is legal, but verifiers that iterate over parts answer 500.
        content = [{"type": "input_text", "text": "" if content is None else str(content)}]
    return {"type": "message", "role": entry["role"], "content": content}


def _function_call(call: Mapping[str, Any], index: int) -> Item:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = orjson.dumps(arguments or {}).decode()
    call_id = call.get("id") or f"call_{index}"
    return {
        "type": "function_call",
        "id": call_id,
        "call_id": call_id,
        "name": function.get("name", ""),
        "arguments": arguments,
        "status": "completed",
    }


def _text_of(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        parts = (part.get("text", "") for part in content if isinstance(part, Mapping))
        return "".join(str(part) for part in parts)
    return str(content)


def _text_message(text: str, index: int) -> Item:
    return {
        "type": "message",
        "id": f"msg_{index}",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }
