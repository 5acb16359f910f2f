"""A stream's chunks put together into the reply that was not streamed. Refuses broken streams.

vLLM sends `prompt_token_ids` once, in a first chunk that may have no text, then `token_ids` with
each delta; tool calls and reasoning come in pieces. A stream that ends without a finish reason
was cut on its way, and what it lost can't be known.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rlbridge.contracts import wire
from rlbridge.errors import ContractError

_TOP = ("id", "request_id", "model", "created", "usage", wire.PROMPT_TOKEN_IDS)
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")


def chunks_from_sse(lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """JSON chunks of server-sent events; comments, empty lines and `[DONE]` are left out.

    Raises:
        ContractError: a line that is no JSON, or an error the engine sent in the stream.
    """
    chunks = []
    for line in lines:
        text = (line.decode() if isinstance(line, bytes) else line).strip()
        if not text.startswith("data:"):
            continue
        data = text[len("data:") :].strip()
        if data == "[DONE]":
            break
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise ContractError(f"a chunk of the stream is no JSON: {data[:80]!r}") from error
        if "error" in chunk:
            raise ContractError(f"the engine failed while streaming: {chunk['error']}")
        chunks.append(chunk)
    return chunks


def reply_from_chunks(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole reply of a chat, completions or generate stream.

    Raises:
        ContractError: no chunk, or a choice that never finished.
    """
    reply: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for name in _TOP:
            if chunk.get(name) is not None:
                reply.setdefault(name, chunk[name])
        for part in chunk.get("choices") or ():
            index = int(part.get("index", 0))
            _add(choices.setdefault(index, {"index": index}), part)
    for index, choice in sorted(choices.items()):
        if choice.get("finish_reason") is None:
            raise ContractError(
                f"the stream of choice {index} ends without a finish_reason: it was cut"
            )
    if not choices:
        raise ContractError("the stream holds no choice")
    reply["choices"] = [choice for _, choice in sorted(choices.items())]
    return reply


def _add(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name in ("finish_reason", "stop_reason", wire.PROMPT_TOKEN_IDS, wire.WEIGHT_VERSIONS):
        if part.get(name) is not None:
            choice[name] = part[name]
    if part.get(wire.TOKEN_IDS) is not None:
        choice.setdefault(wire.TOKEN_IDS, []).extend(part[wire.TOKEN_IDS])
    if part.get("text") is not None:
        choice["text"] = choice.get("text", "") + part["text"]
    for name, values in (part.get("logprobs") or {}).items():
        if isinstance(values, list):
            choice.setdefault("logprobs", {}).setdefault(name, []).extend(values)
    if part.get("delta") is not None:
        _add_delta(choice.setdefault("message", {"role": "assistant", "content": None}), part)


def _add_delta(message: dict[str, Any], part: Mapping[str, Any]) -> None:
    delta = part["delta"]
    for name in _TEXTS:
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    for call in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        index = call.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        if call.get("id"):
            calls[index]["id"] = call["id"]
        for name, value in (call.get("function") or {}).items():
            calls[index]["function"][name] += value or ""
