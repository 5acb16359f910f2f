"""Streams: chat chunks, completion chunks, and the events of a streamed response.

Each takes the pieces of one answer (deltas in Chat form, then the outcome) and gives server-sent
events. What fails midway is said in the stream, because its status is sent already.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from rlbridge.gateway.chat import (
    DONE,
    ChatWriter,
    CompletionWriter,
    Wanted,
    chunk_head,
    delta_chunk,
    event,
)
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.outcome import Outcome
from rlbridge.gateway.responses import ResponsesWriter, items_of, skeleton
from rlbridge.onpolicy.tokenizer import ChatTokenizer

Pieces = AsyncGenerator[Mapping[str, Any] | Outcome, None]


async def first_piece(pieces: Pieces) -> Pieces:
    """The same pieces, once there is a first: what fails before raises here, with a status."""
    first = await anext(pieces)

    async def all_pieces() -> Pieces:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return all_pieces()


async def ending(
    events: AsyncGenerator[bytes, None], pieces: Sequence[Pieces]
) -> AsyncGenerator[bytes, None]:
    """The events, and an end to the pieces they are made of when nobody wants more."""
    try:
        async for data in events:
            yield data
    finally:
        await events.aclose()
        for each in pieces:
            await each.aclose()


async def chat_events(
    pieces: Pieces, tokenizer: ChatTokenizer, wanted: Wanted, *, name: str, model: str
) -> AsyncGenerator[bytes, None]:
    """The chunks of `/v1/chat/completions`."""
    head = chunk_head(name, int(time.time()), model)
    begun = False
    try:
        async for piece in pieces:
            if not isinstance(piece, Outcome):
                if not begun:
                    yield delta_chunk(head, 0, {"role": "assistant", "content": ""})
                    begun = True
                yield delta_chunk(head, 0, piece)
                continue
            writer = ChatWriter(tokenizer, piece, wanted)
            for index, answer in enumerate(piece.answers):
                if not begun or index:
                    yield delta_chunk(head, index, _whole(answer.message))
                for chunk in writer.last_chunks(index, answer, head):
                    yield chunk
            if wanted.usage:
                yield event({**head, "choices": [], "usage": piece.usage()})
    except ApiError as error:
        yield event(error.document())
    yield DONE


async def completion_events(
    streams: list[Pieces], tokenizer: ChatTokenizer, wanted: Wanted, *, name: str, model: str
) -> AsyncGenerator[bytes, None]:
    """The chunks of `/v1/completions`, one prompt's after the other's."""
    head = {
        "id": f"cmpl-{name}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    first = 0
    usage: dict[str, int] = {}
    try:
        for pieces in streams:
            sent = False
            async for piece in pieces:
                if not isinstance(piece, Outcome):
                    sent = True
                    choice = {"index": first, "text": piece.get("text", ""), "logprobs": None,
                              "finish_reason": None}  # fmt: skip
                    yield event({**head, "choices": [choice]})
                    continue
                writer = CompletionWriter(tokenizer, piece, wanted)
                for index, answer in enumerate(piece.answers):
                    text = "" if sent and not index else None
                    choice = writer.choice(first + index, answer, text=text)
                    yield event({**head, "choices": [choice]})
                first += len(piece.answers)
                for key, value in piece.usage().items():
                    if isinstance(value, int):
                        usage[key] = usage.get(key, 0) + value
        if wanted.usage:
            yield event({**head, "choices": [], "usage": usage})
    except ApiError as error:
        yield event(error.document())
    yield DONE


async def response_events(
    pieces: Pieces,
    tokenizer: ChatTokenizer,
    body: Mapping[str, Any],
    *,
    fields: bool,
    name: str,
    model: str,
) -> AsyncGenerator[bytes, None]:
    """The events of `/v1/responses`."""
    numbered = _Numbered()
    begun = skeleton(body, name, int(time.time()), model)
    yield numbered("response.created", response=begun)
    yield numbered("response.in_progress", response=begun)
    open_items = _OpenItems(name, numbered)
    try:
        async for piece in pieces:
            if not isinstance(piece, Outcome):
                for sent in open_items.feed(piece):
                    yield sent
                continue
            if not open_items.items:
                for sent in open_items.feed(piece.answers[0].message):
                    yield sent
            document = ResponsesWriter(tokenizer, body, piece, fields=fields).document()
            document["output"] = open_items.ordered(document["output"])
            for sent in open_items.close(document["output"]):
                yield sent
            document["id"] = begun["id"]
            yield numbered(f"response.{document['status']}", response=document)
    except ApiError as error:
        failure = {"code": "server_error", "message": str(error)}
        failed = begun | {"status": "failed", "error": failure}
        yield numbered("response.failed", response=failed)


class _Numbered:
    """Events of a response, each with its number."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, kind: str, **data: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **data}
        self._number += 1
        encoded = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return b"event: " + kind.encode() + b"\ndata: " + encoded + b"\n\n"


class _OpenItems:
    """The output items of a response as they grow: reasoning, text, tool calls."""

    def __init__(self, name: str, numbered: Callable[..., bytes]) -> None:
        self.items: list[dict[str, Any]] = []
        self._name = name
        self._numbered = numbered
        self._calls: dict[int, int] = {}

    def feed(self, delta: Mapping[str, Any]) -> list[bytes]:
        """The events of a delta in Chat form."""
        sent: list[bytes] = []
        if delta.get("reasoning"):
            sent += self._text("reasoning", delta["reasoning"])
        if delta.get("content"):
            sent += self._text("message", delta["content"])
        for index, call in enumerate(delta.get("tool_calls") or ()):
            sent += self._call(call.get("index", index), call)
        return sent

    def ordered(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The finished items in the order they were opened, under the IDs they got then."""
        rest, done = list(output), []
        for opened in self.items:
            same = ("type", "call_id")
            item = next((i for i in rest if all(i.get(k) == opened.get(k) for k in same)), None)
            if item is not None:
                rest.remove(item)
                done.append(item | {"id": opened["id"]})
        return done + rest

    def close(self, output: list[dict[str, Any]]) -> list[bytes]:
        """The events that end all items, as the finished response has them."""
        sent: list[bytes] = []
        for index in range(len(self.items), len(output)):
            sent += self._open(output[index] | {"status": "in_progress"})
        for index, item in enumerate(output):
            place = {"item_id": item.get("id"), "output_index": index}
            if item["type"] == "message":
                part = item["content"][0]
                at = place | {"content_index": 0}
                sent.append(self._numbered("response.output_text.done", **at, text=part["text"],
                                           logprobs=part.get("logprobs") or []))  # fmt: skip
                sent.append(self._numbered("response.content_part.done", **at, part=part))
            elif item["type"] == "reasoning":
                part = item["summary"][0]
                at = place | {"summary_index": 0}
                sent.append(self._numbered("response.reasoning_summary_text.done", **at,
                                           text=part["text"]))  # fmt: skip
                sent.append(self._numbered("response.reasoning_summary_part.done", **at, part=part))
            else:
                sent.append(self._numbered("response.function_call_arguments.done", **place,
                                           name=item["name"],
                                           arguments=item["arguments"]))  # fmt: skip
            sent.append(self._numbered("response.output_item.done", output_index=index, item=item))
        return sent

    def _text(self, kind: str, text: str) -> list[bytes]:
        sent: list[bytes] = []
        index = next((i for i, item in enumerate(self.items) if item["type"] == kind), -1)
        if index < 0:
            message = {"reasoning": " "} if kind == "reasoning" else {"content": ""}
            item = items_of({"role": "assistant", **message}, self._name)[0]
            part = {"type": "output_text", "text": "", "annotations": []}
            if kind == "reasoning":
                item["summary"], part = [], {"type": "summary_text", "text": ""}
            else:
                item["content"] = []
            index = len(self.items)
            sent += self._open(item | {"status": "in_progress"})
            place = {"item_id": item["id"], "output_index": index}
            if kind == "reasoning":
                sent.append(self._numbered("response.reasoning_summary_part.added", **place,
                                           summary_index=0, part=part))  # fmt: skip
            else:
                sent.append(self._numbered("response.content_part.added", **place,
                                           content_index=0, part=part))  # fmt: skip
        place = {"item_id": self.items[index]["id"], "output_index": index}
        if kind == "reasoning":
            delta = self._numbered("response.reasoning_summary_text.delta", **place,
                                   summary_index=0, delta=text)  # fmt: skip
        else:
            delta = self._numbered("response.output_text.delta", **place, content_index=0,
                                   delta=text, logprobs=[])  # fmt: skip
        return [*sent, delta]

    def _call(self, number: int, call: Mapping[str, Any]) -> list[bytes]:
        sent: list[bytes] = []
        function = call.get("function") or {}
        if number not in self._calls:
            index = self._calls[number] = len(self.items)
            item = {
                "type": "function_call",
                "id": f"fc_{self._name}_{index}",
                "call_id": call.get("id") or "",
                "name": function.get("name") or "",
                "arguments": "",
                "status": "in_progress",
            }
            sent += self._open(item)
        index = self._calls[number]
        arguments = function.get("arguments")
        if arguments:
            sent.append(self._numbered("response.function_call_arguments.delta",
                                       item_id=self.items[index]["id"], output_index=index,
                                       delta=arguments))  # fmt: skip
        return sent

    def _open(self, item: dict[str, Any]) -> list[bytes]:
        index = len(self.items)
        self.items.append(item)
        return [self._numbered("response.output_item.added", output_index=index, item=item)]


def _whole(message: Mapping[str, Any]) -> dict[str, Any]:
    """A whole message as one delta."""
    delta = {key: value for key, value in message.items() if value is not None}
    calls = message.get("tool_calls")
    if calls:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    return delta
