"""Requests checked against the `openai` package's own parameter types. Unknown fields pass.

vLLM's extensions are unknown fields. A null is a field left out. Of a long history only the new
messages are checked: what came before was checked when it was new.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionToolUnionParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase as ChatParams,
)
from openai.types.completion_create_params import (
    CompletionCreateParamsBase as CompletionParams,
)
from openai.types.responses.response_create_params import (
    ResponseCreateParamsBase as ResponsesParams,
)
from pydantic import TypeAdapter, ValidationError

from rlbridge.gateway.errors import ApiError

_ROLES: Mapping[str, Any] = {
    "assistant": ChatCompletionAssistantMessageParam,
    "developer": ChatCompletionDeveloperMessageParam,
    "function": ChatCompletionFunctionMessageParam,
    "system": ChatCompletionSystemMessageParam,
    "tool": ChatCompletionToolMessageParam,
    "user": ChatCompletionUserMessageParam,
}
PARAMS: Mapping[str, Any] = {
    "chat": ChatParams,
    "completions": CompletionParams,
    "responses": ResponsesParams,
}
# Looked at one by one, or by their own routes.
_APART = frozenset({"messages", "tools", "input", "prompt"})


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """The checker of one of openai's types."""
    return TypeAdapter(kind)


def check_request(api: str, body: object) -> Mapping[str, Any]:
    """The body of a request, its fields checked; messages, input and tools are left for later.

    Args:
        api: a key of `PARAMS`.
        body: as JSON gave it.

    Raises:
        ApiError: a field of the wrong type, or one that is missing.
    """
    if not isinstance(body, dict):
        raise ApiError("the request's body must be a JSON object")
    given = {key: value for key, value in body.items() if value is not None and key not in _APART}
    needed = {"chat": "messages", "completions": "prompt", "responses": "input"}[api]
    if body.get(needed) is None and not (api == "responses" and "previous_response_id" in given):
        raise ApiError(f"{needed} is missing", param=needed)
    given.setdefault("model", "")
    given[needed] = "" if needed != "messages" else []
    _check(PARAMS[api], given, "")
    for name in ("stream", "store"):
        if not isinstance(given.get(name, False), bool):
            raise ApiError(f"{name} must be true or false", param=name)
    return body


def check_messages(messages: object) -> list[Any]:
    """The messages of a request: a list, into which nobody has looked.

    Raises:
        ApiError: something else, or an empty list.
    """
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a list with at least one message", param="messages")
    return messages


def check_objects(messages: Sequence[object], first: int = 0) -> list[dict[str, Any]]:
    """Messages that are JSON objects, the first of them number `first`.

    Raises:
        ApiError: with the message's place.
    """
    for index, message in enumerate(messages, first):
        if not isinstance(message, dict):
            raise ApiError(f"messages[{index}] must be an object", param=f"messages[{index}]")
    return messages  # type: ignore[return-value]


def check_new_messages(messages: Sequence[Mapping[str, Any]], first: int) -> None:
    """Check `messages[first:]`, each by its role.

    Raises:
        ApiError: with the message's place.
    """
    for index in range(first, len(messages)):
        message, where = messages[index], f"messages[{index}]"
        kind = _ROLES.get(str(message.get("role")))
        if kind is None:
            roles = ", ".join(sorted(_ROLES))
            raise ApiError(
                f"{where}.role must be one of {roles}, got {message.get('role')!r}",
                param=f"{where}.role",
            )
        _check(kind, {k: v for k, v in message.items() if v is not None}, where)


def check_tools(tools: object) -> list[dict[str, Any]] | None:
    """A request's tools, in Chat form; None for none.

    Raises:
        ApiError: no list of tools, or a tool that is no function.
    """
    if not tools:
        return None
    if not isinstance(tools, list):
        raise ApiError("tools must be a list", param="tools")
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise ApiError(f"{where} must be an object", param=where)
        _check(ChatCompletionToolUnionParam, tool, where)
        if tool.get("type") != "function":
            raise ApiError(f"{where}: only functions are supported", param=where)
    return tools


def check_items(items: object) -> list[dict[str, Any]]:
    """The input items of a Responses request.

    Raises:
        ApiError: with the item's place.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list):
        raise ApiError("input must be a string or a list of items", param="input")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise ApiError(f"input[{index}] must be an object", param=f"input[{index}]")
    return items


def _check(kind: Any, value: object, where: str) -> None:
    try:
        _exhaust(adapter(kind).validate_python(value))
    except ValidationError as error:
        raise _refusal(error, where) from error


def _refusal(error: ValidationError, where: str) -> ApiError:
    """The first thing that is wrong, at the place a client knows it by."""
    first = error.errors(include_url=False, include_context=False)[0]
    path = where
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part.islower() and part not in {"str", "generator"}:
            path += f".{part}" if path else part
    return ApiError(f"{path}: {first['msg']}", param=path or None)


def _exhaust(value: object) -> None:
    """Look into lazy lists too: pydantic checks an `Iterable` only when it is read."""
    if isinstance(value, str | int | float | bytes) or value is None:
        return
    if isinstance(value, Mapping):
        for part in value.values():
            _exhaust(part)
    elif isinstance(value, Iterable):
        for part in itertools.islice(value, 100_000):
            _exhaust(part)
