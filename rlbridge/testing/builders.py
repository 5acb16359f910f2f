"""Rows and responses as a Gym server wants them, for tests."""

from typing import Any


def make_row(prompt: str = "What is 2 + 2?", /, **fields: Any) -> dict[str, Any]:
    """A dataset row: a prompt, and the verifier's own fields as keywords.

    `make_row("What is 2 + 2?", expected_answer="4")` is a row of the arithmetic server.
    """
    return {
        "responses_create_params": {"input": [{"role": "user", "content": prompt}]},
        **fields,
    }


def make_message(text: str, **fields: Any) -> dict[str, Any]:
    """An assistant message as a Responses output item; token fields go in as keywords."""
    return {
        "id": "msg_test",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
        **fields,
    }


def make_tool_call(name: str, arguments: str = "{}", call_id: str = "call_test") -> dict[str, Any]:
    """A function call as a Responses output item; `arguments` is JSON in a string."""
    return {"type": "function_call", "name": name, "arguments": arguments, "call_id": call_id}


def make_response(*items: str | dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A whole Responses object; a string becomes an assistant message."""
    output = [make_message(item) if isinstance(item, str) else item for item in items]
    return {
        "id": "resp_test",
        "created_at": 0,
        "model": "policy",
        "object": "response",
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **fields,
    }
