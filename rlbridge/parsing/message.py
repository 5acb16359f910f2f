"""What a model's text says, in Chat's terms. Refuses nothing: text that is no call is content."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Mistral's templates refuse any other call ID than nine letters and digits.
_SHORT_ID_LETTERS = 9


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call.

    Attributes:
        name: of the tool; not looked up anywhere.
        arguments: a JSON object as text. Where the model wrote JSON it is what the model wrote,
            byte for byte; where it wrote XML or Python it is made from that.
        call_id: the ID the model wrote, in formats that have one; else empty.
    """

    name: str
    arguments: str
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """What a piece of text added; each part may be empty.

    Attributes:
        reasoning: text to append to the reasoning.
        content: text to append to the content.
        tool_calls: calls that are complete now, after those of earlier deltas.
    """

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.tool_calls)


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """A whole answer.

    Attributes:
        reasoning: None where there is none.
        content: None where there is none. Calls that nobody can read are in here as written.
        tool_calls: in the order written.
        problems: why text that looked like a call is content, one entry each.
        reasoning_closed: False where the text ended inside the reasoning.
    """

    reasoning: str | None = None
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()
    reasoning_closed: bool = True

    def as_chat(self, seed: str) -> dict[str, Any]:
        """The assistant message of the Chat API.

        Args:
            seed: names the answer (its call ID, say): the same seed gives the same tool call IDs.
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                chat_call(call, seed, index) for index, call in enumerate(self.tool_calls)
            ]
        return message


def chat_call(call: ToolCall, seed: str, index: int) -> dict[str, Any]:
    """A tool call as the Chat API has it.

    Args:
        call: the call.
        seed: names the answer.
        index: of the call in the answer.
    """
    return {
        "id": call.call_id or call_id(seed, index),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def call_id(seed: str, index: int) -> str:
    """Nine letters and digits, which every chat template takes; the same for the same input."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(letters[byte % len(letters)] for byte in digest[:_SHORT_ID_LETTERS])


def parameter_schemas(tools: object) -> dict[str, Mapping[str, Any]]:
    """JSON schemas of parameters by tool name, from tools in Chat form; what is odd is left out."""
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in tools if isinstance(tools, list | tuple) else ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(name, str) and isinstance(properties, Mapping):
            schemas[name] = properties
    return schemas
