"""Chat messages of Responses items. Refuses an item without a chat form, with its JSON path.

Items of one model call become one assistant message: its reasoning, text and tool calls, in the
form the model's template wants (`Style`). Nothing is left out in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from rlbridge.contracts import wire
from rlbridge.transforms.rejects import BadRowError

Message = dict[str, Any]

_MORE: Final = frozenset({"tool_calls", "reasoning", "reasoning_content"})


@dataclass(frozen=True, slots=True)
class Style:
    """How a model's chat template wants what chat messages have no one form for.

    Attributes:
        reasoning: `field` puts it under `reasoning_field`, `think` in front of the content
            between `<think>` tags, `drop` leaves it out.
        reasoning_field: the message's key that the template reads.
        arguments: a tool call's arguments as an `object`, which templates print, or as the
            `string` of the OpenAI wire.
    """

    reasoning: Literal["field", "think", "drop"] = "field"
    reasoning_field: str = "reasoning_content"
    arguments: Literal["object", "string"] = "object"


def messages_of(
    items: list[Any], style: Style, at: str, start: int = 0, role: str = "user"
) -> list[Message]:
    """Chat messages of Responses items.

    Args:
        items: the items, or chat messages.
        style: the form of reasoning and arguments.
        at: the list's JSON path, for messages.
        start: the first item's index in that list.
        role: of a message that names none.

    Raises:
        BadRowError: an item has no chat form.
    """
    if len(items) == 1:
        message = _plain(items[0], role)
        if message is not None:
            return [message]
    writer = _Messages(style)
    for index, item in enumerate(items, start):
        try:
            writer.item(item, role)
            if item.get(wire.GENERATION_TOKEN_IDS):
                writer.end_of_call()
        except BadRowError as error:
            where = f"{at}[{index}]" + error.at.removeprefix("$")
            raise BadRowError(str(error), at=where, kind=error.kind) from None
        except AttributeError:
            bad = f"an item must be an object, not {type(item).__name__}"
            raise BadRowError(bad, at=f"{at}[{index}]") from None
    return writer.finished()


def text_of(content: Any) -> str:
    """The text of a message's content.

    Raises:
        BadRowError: it holds something else, an image say.
    """
    if type(content) is str:
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise BadRowError(
            f"content must be text or parts, not {type(content).__name__}", at="$.content"
        )
    texts = []
    for index, part in enumerate(content):
        text = part
        if type(part) is dict:
            text = part.get("text")
            if text is None:
                text = part.get("refusal")
        if type(text) is not str:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRowError(
                f"a part of type {kind!r} is no text", at=f"$.content[{index}]", kind=f"{kind} part"
            )
        texts.append(text)
    return texts[0] if len(texts) == 1 else "".join(texts)


def chat_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools in chat form, from Responses' flat form or chat's own.

    Raises:
        BadRowError: it is no list of objects.
    """
    return [
        tool
        if "function" in tool
        else {
            "type": "function",
            "function": {
                key: value for key, value in tool.items() if key != "type" and value is not None
            },
        }
        for tool in _objects(tools, "$.responses_create_params.tools")
    ]


def _objects(given: Any, at: str) -> list[dict[str, Any]]:
    if type(given) is list:
        for one in given:  # all() with a generator costs half a microsecond
            if type(one) is not dict:
                break
        else:
            return given
    raise BadRowError("must be a list of objects", at=at)


def _plain(item: Any, role: str) -> Message | None:
    """The message of an item that is text and no more, which most are; None of any other.

    Half the time of a transform goes into messages; this takes a third of what `_Messages` does.
    """
    if type(item) is not dict or item.get("type", "message") != "message":
        return None
    role, content = item.get("role") or role, item.get("content")
    if type(content) is list and len(content) == 1 and type(content[0]) is dict:
        content = content[0].get("text")
    if type(content) is not str:
        return None
    if role == "user" or role == "system" or (role == "assistant" and _MORE.isdisjoint(item)):
        return {"role": role, "content": content}
    return None


class _Messages:
    """Writes messages; the items of one model call go into one assistant message."""

    __slots__ = ("_calls", "_open", "_out", "_spoken", "_style")

    def __init__(self, style: Style) -> None:
        self._style = style
        self._out: list[Message] = []
        self._open: Message | None = None  # the assistant message that may still grow
        self._spoken = False  # whether the open message has its text
        self._calls: list[tuple[str, str]] = []  # tool calls without a result yet: ID and name

    def finished(self) -> list[Message]:
        return self._out

    def end_of_call(self) -> None:
        self._open = None

    def item(self, item: Mapping[str, Any], role: str) -> None:
        kind = item.get("type")
        if kind == "message" or kind is None:
            self.message(item, item.get("role") or role)
        elif kind == "reasoning":
            self.reasoning(item)
        elif kind == "function_call":
            self.function_call(item)
        elif kind == "function_call_output":
            self.tool_result(item)
        else:
            raise BadRowError(
                f"an item of type {kind!r} has no form in chat messages", kind=f"{kind} item"
            )

    def message(self, item: Mapping[str, Any], role: str) -> None:
        if role == "assistant":
            self._assistant(item)
            return
        self._open = None
        if role == "tool":
            self.tool_result({"call_id": item.get("tool_call_id"), "output": item.get("content")})
            return
        if not isinstance(role, str):
            raise BadRowError(f"a role must be text, not {type(role).__name__}", at="$.role")
        content = item.get("content")
        if type(content) is not str:
            content = _prompt_content(content)
        # Responses' "developer" is what chat templates call "system".
        self._out.append({"role": "system" if role == "developer" else role, "content": content})

    def _assistant(self, item: Mapping[str, Any]) -> None:
        text = text_of(item.get("content"))
        target = self._open
        if target is None or self._spoken or "tool_calls" in target:
            target = self._start()
        thinking = item.get("reasoning_content") or item.get("reasoning")
        if isinstance(thinking, str):
            self._think(target, thinking)
        target["content"] = target["content"] + text if target["content"] else text
        self._spoken = bool(text)
        calls = item.get("tool_calls")
        for call in _objects(calls, "$.tool_calls") if calls else ():
            function = call.get("function") or call
            if type(function) is not dict:
                raise BadRowError("a tool call's function must be an object", at="$.tool_calls")
            self.function_call(
                {"call_id": call.get("id"), "name": function.get("name"),
                 "arguments": function.get("arguments")}
            )  # fmt: skip

    def reasoning(self, item: Mapping[str, Any]) -> None:
        parts, at = item.get("summary"), "$.summary"
        if not parts:
            parts, at = item.get("content"), "$.content"
        texts = []
        for part in _objects(parts, at) if parts else ():
            if text := part.get("text"):
                if type(text) is not str:
                    raise BadRowError("a part's text must be text", at=at)
                texts.append(text)
        text = "\n".join(texts)
        target = self._open
        if target is None or self._spoken or "tool_calls" in target:
            target = self._start()
        if text:
            self._think(target, text)

    def function_call(self, item: Mapping[str, Any]) -> None:
        name = item.get("name")
        if not isinstance(name, str):
            raise BadRowError("a tool call without a name", at="$.name")
        call_id = item.get("call_id") or item.get("id") or f"call_{len(self._out)}"
        arguments = self._arguments(item.get("arguments"))
        call = {"id": call_id, "type": "function",
                "function": {"name": name, "arguments": arguments}}  # fmt: skip
        target = self._open if self._open is not None else self._start()
        target.setdefault("tool_calls", []).append(call)
        self._calls.append((call_id, name))

    def tool_result(self, item: Mapping[str, Any]) -> None:
        self._open = None
        call_id = item.get("call_id")
        found = next((n for n, call in enumerate(self._calls) if call[0] == call_id), 0)
        name = ""
        if self._calls and (call_id is None or self._calls[found][0] == call_id):
            call_id, name = self._calls.pop(found)
        output = item.get("output")
        if not isinstance(output, str):
            output = text_of(output) if isinstance(output, list) else orjson.dumps(output).decode()
        message = {"role": "tool", "tool_call_id": call_id or "", "content": output}
        if name:
            message["name"] = name
        self._out.append(message)

    def _start(self) -> Message:
        self._open = message = {"role": "assistant", "content": ""}
        self._spoken = False
        self._out.append(message)
        return message

    def _think(self, target: Message, text: str) -> None:
        style = self._style
        if style.reasoning == "field":
            before = target.get(style.reasoning_field)
            target[style.reasoning_field] = f"{before}\n{text}" if before else text
        elif style.reasoning == "think":
            target["content"] = f"{target['content']}<think>\n{text}\n</think>\n\n"

    def _arguments(self, given: Any) -> Any:
        if self._style.arguments == "string":
            return given if isinstance(given, str) else orjson.dumps(given or {}).decode()
        if not isinstance(given, str):
            return given or {}
        try:
            return orjson.loads(given) if given else {}
        except orjson.JSONDecodeError:
            return given  # what the policy sampled is no JSON; it stays as it was


def _prompt_content(content: Any) -> Any:
    """Text, or chat parts where there is an image among them."""
    if isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in ("input_image", "image_url")
        for part in content
    ):
        return [_chat_part(part) for part in content]
    return text_of(content)


def _chat_part(part: Any) -> Any:
    kind = part.get("type")
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    return {"type": "text", "text": part.get("text", "")} if kind != "image_url" else part
