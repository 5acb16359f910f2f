"""A conversation as plain text, for formats that hold no messages. Says what that loses."""

from typing import Any

from rlbridge.transforms.harvest import SkippedRowError
from rlbridge.transforms.messages import Message, text_of
from rlbridge.transforms.rejects import BadRowError


def prompt_text(messages: list[Message]) -> str:
    """One user message as it is; others joined, roles named where there is a history."""
    if len(messages) == 1:
        return _text(messages[0], 0)
    texts = [_text(message, number) for number, message in enumerate(messages)]
    if {message["role"] for message in messages} <= {"system", "user"}:
        return "\n\n".join(texts)
    return "\n\n".join(
        f"{message['role']}: {text}" for message, text in zip(messages, texts, strict=True)
    )


def completion_text(messages: list[Message]) -> str:
    """What the policy said, its turns joined; tool calls and their results are left out."""
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        return messages[0]["content"] or ""
    said = [m["content"] for m in messages if m["role"] == "assistant" and m["content"]]
    return "\n\n".join(said)


def single_answer(messages: list[Message]) -> str:
    """The text of a completion that is one assistant message.

    Raises:
        SkippedRowError: it is empty, or more than text: trained on as text it would teach the
            policy to make results up.
    """
    if len(messages) != 1 or "tool_calls" in messages[0]:
        if not messages:
            raise SkippedRowError("with an empty answer")
        raise SkippedRowError("with tool calls or several turns (--format openai keeps them)")
    text = messages[0]["content"]
    if not isinstance(text, str) or not text.strip():
        raise SkippedRowError("with an empty answer")
    return text


def says_something(messages: list[Message]) -> bool:
    """Whether there is an answer or a tool call to train on."""
    for message in messages:  # any() with a generator costs half a microsecond
        if message["role"] == "assistant" and (message["content"] or "tool_calls" in message):
            return True
    return False


def _text(message: Message, number: int) -> str:
    content: Any = message["content"]
    if type(content) is str:
        return content
    try:
        return text_of(content)
    except BadRowError as error:
        at = f"$.responses_create_params.input[{number}].content"
        raise BadRowError(f"{error}; --format openai keeps it", at=at, kind=error.kind) from None
