"""The Responses API over the Chat core: requests converted on the way in, items on the way out.

Token fields are on the last output item, where Gym looks. A `previous_response_id` is the history
of that response in its session. Refuses what has no place in a chat template: images, files,
hosted tools, background runs.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from rlbridge.contracts.codecs.messages import items_from_message, messages_from_items, text_of
from rlbridge.errors import ContractError
from rlbridge.gateway.chat import prompt_fragment, token_fields, token_logprobs
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.openai_types import check_items, check_request
from rlbridge.gateway.outcome import Answer, Outcome
from rlbridge.onpolicy.tokenizer import ChatTokenizer

ID_PREFIX = "resp_"
# Marks the system message that `instructions` became; a template doesn't look at it.
_INSTRUCTIONS = "rlbridge_instructions"
_LOGPROBS = "message.output_text.logprobs"
# Chat's fields that Responses bodies may carry for the engine, and those with another name.
_CONVERTED = frozenset(
    {
        "input", "instructions", "tools", "tool_choice", "text", "reasoning", "include",
        "max_output_tokens", "previous_response_id", "truncation", "background", "service_tier",
        "prompt", "conversation", "max_tool_calls",
    }
)  # fmt: skip


def previous(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """Session and seed of `previous_response_id`; None where there is none.

    Raises:
        ApiError: it is none of ours.
    """
    given = body.get("previous_response_id")
    if given is None:
        return None
    name, _, seed = str(given).removeprefix(ID_PREFIX).rpartition("_")
    if not str(given).startswith(ID_PREFIX) or not name:
        raise ApiError(
            f"previous_response_id {given!r} isn't a response of this gateway's",
            status=404,
            param="previous_response_id",
        )
    return name, seed


def no_response(session: str) -> ApiError:
    """That a session has no such response, or not for this client."""
    return ApiError(
        f"session {session!r} has no response of that ID",
        status=404,
        param="previous_response_id",
    )


def chat_request(
    body: Mapping[str, Any], history: list[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The body of a chat completion that asks for the same.

    Args:
        body: of `/v1/responses`.
        history: the messages up to and with the previous response.

    Raises:
        ApiError: what can't be asked of a chat model.
    """
    check_request("responses", body)
    for name in ("background", "conversation", "prompt"):
        if body.get(name):
            raise ApiError(f"{name} isn't supported by this gateway", param=name)
    try:
        news = messages_from_items(check_items(body.get("input") or []))
    except ContractError as error:
        raise ApiError(str(error), param="input") from error
    messages = [message for message in history or () if not message.get(_INSTRUCTIONS)] + news
    if body.get("instructions"):
        system = {"role": "system", "content": body["instructions"], _INSTRUCTIONS: True}
        messages.insert(0, system)
    chat = {key: value for key, value in body.items() if key not in _CONVERTED}
    chat["messages"] = messages
    chat["max_tokens"] = body.get("max_output_tokens")
    tools = body.get("tools")
    if tools:
        chat["tools"] = [_tool(tool, index) for index, tool in enumerate(tools)]
    if body.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(body["tool_choice"])
    form = (body.get("text") or {}).get("format") or {}
    if form.get("type") == "json_schema":
        schema = {key: form[key] for key in ("name", "schema", "strict") if key in form}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form.get("type") == "json_object":
        chat["response_format"] = {"type": "json_object"}
    effort = (body.get("reasoning") or {}).get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    return {key: value for key, value in chat.items() if value is not None}


class ResponsesWriter:
    """Writes the reply to one Responses request.

    Args:
        tokenizer: for the text of single tokens.
        body: the request.
        outcome: its answer.
        fields: whether token fields are wanted.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, body: Mapping[str, Any], outcome: Outcome, *, fields: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._outcome = outcome
        self._fields = fields

    def document(self) -> dict[str, Any]:
        """The whole response."""
        outcome = self._outcome
        answer = outcome.answers[0]
        cut = answer.finish_reason in {"length", "content_filter"}
        reason = "max_output_tokens" if answer.finish_reason == "length" else "content_filter"
        document = skeleton(self._body, outcome.name, outcome.created_s, outcome.model)
        return document | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": reason} if cut else None,
            "output": self.items(answer),
            "usage": {
                "input_tokens": outcome.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": outcome.cached_tokens or 0,
                    "cache_write_tokens": 0,
                },
                "output_tokens": outcome.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
            },
        }

    def body(self) -> bytes:
        """The whole response, encoded."""
        return orjson.dumps(self.document(), option=orjson.OPT_SERIALIZE_NUMPY)

    def items(self, answer: Answer) -> list[dict[str, Any]]:
        """The output items, token fields on the last."""
        items = items_of(answer.message, self._outcome.name)
        if answer.call is None:
            return items
        if _LOGPROBS in (self._body.get("include") or ()):
            logprobs = token_logprobs(self._tokenizer, answer, as_ids=False)
            for item in items:
                if item["type"] == "message":
                    item["content"][0]["logprobs"] = logprobs
        if self._fields:
            items[-1].update(token_fields(answer, prompt_fragment(self._outcome)))
        return items


def items_of(message: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The output items of an answer, with what the Responses API requires of them."""
    plain = message
    if not text_of(message.get("content")) and not message.get("tool_calls"):
        plain = {**message, "content": None if message.get("reasoning") else ""}
    items = items_from_message(plain, item_id=name)
    for index, item in enumerate(items):
        if item["type"] == "function_call":
            item |= {"id": f"fc_{name}_{index}", "status": "completed"}
        elif item["type"] == "reasoning":
            item["status"] = "completed"
    return items


def skeleton(body: Mapping[str, Any], name: str, created_s: int, model: str) -> dict[str, Any]:
    """A response before its output: what was asked, as the API repeats it."""
    return {
        "id": f"{ID_PREFIX}{name}",
        "object": "response",
        "created_at": created_s,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True) is not False,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": body.get("reasoning"),
        "store": False,
        "temperature": body.get("temperature"),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        "user": body.get("user"),
    }


def _tool(tool: object, index: int) -> dict[str, Any]:
    """A function in Chat form, without the nulls that would change a rendered prompt."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise ApiError(
            f"tools[{index}]: only functions are supported, not {tool!r:.60}",
            param=f"tools[{index}]",
        )
    wanted = ("name", "description", "parameters")
    function = {key: tool[key] for key in wanted if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: object) -> object:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice
