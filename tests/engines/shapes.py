"""How two answers of a server differ: status, content type, fields, kinds of values, words."""

from typing import Any

import aiohttp
import orjson

from rlbridge.contracts.codecs.stream import chunks_from_sse


def shape(value: Any) -> Any:
    """Fields and kinds of values; a list is what its elements are, null fits everything."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) else type(value).__name__


def differences(real: Any, ours: Any, where: str = "$") -> list[str]:
    if isinstance(real, dict) and isinstance(ours, dict):
        if where.endswith(".top_logprobs[]") and "token" not in real:
            return []  # names of tokens
        found = [f"{where}.{key} is missing" for key in real.keys() - ours.keys()]
        found += [f"{where}.{key} is new" for key in ours.keys() - real.keys()]
        for key in real.keys() & ours.keys():
            found += differences(real[key], ours[key], f"{where}.{key}")
        return found
    if isinstance(real, list) and isinstance(ours, list):
        return differences(real[0], ours[0], f"{where}[]") if real and ours else []
    if real == ours or "NoneType" in (real, ours):
        return []
    return [f"{where} is {ours}, not {real}"]


async def ask(root: str, request: Any) -> tuple[int, str, Any]:
    """Status, content type, and the JSON, the lines of events or the text."""
    async with (
        aiohttp.ClientSession() as http,
        http.request(request["method"], root + request["path"], json=request["body"]) as reply,
    ):
        if reply.content_type == "application/json":
            return reply.status, reply.content_type, await reply.json()
        text = await reply.text()
        lines = [line for line in text.splitlines() if line]
        streamed = reply.content_type == "text/event-stream"
        return reply.status, reply.content_type, lines if streamed else text


def unlike(theirs: Any, ours: Any) -> list[str]:
    """How two answers to one request differ in status, content type, keys and kinds of values.

    What is refused is refused with the same words up to the first number.
    """
    (status, kind, real), (our_status, our_kind, made) = theirs, ours
    if (status, kind) != (our_status, our_kind):
        return [f"{our_status} {our_kind}, not {status} {kind}"]
    if isinstance(real, str):
        return [] if real == made else [f"{made!r}, not {real!r}"]
    if isinstance(real, list):
        if '"error"' in real[0]:
            told, own_words = (orjson.loads(lines[0][6:]) for lines in (real, made))
            return [] if told == own_words else [f"{own_words}, not {told}"]
        chunks, own = chunks_from_sse(real), chunks_from_sse(made)
        return [
            f"chunk {number}: {line}"
            for number in (0, 1, -2, -1)
            for line in differences(shape(chunks[number]), shape(own[number]))
            if "system_fingerprint" not in line  # vLLM puts it on some of the chunks
        ]
    found = differences(shape(real), shape(made))
    if "error" in real and not found:
        said, own_words = real["error"]["message"], made["error"]["message"]
        found = [] if _words(said) == _words(own_words) else [f"{own_words}, not {said}"]
    return found


def _words(message: str) -> str:
    for number, character in enumerate(message):
        if character.isdigit():
            return message[:number]
    return message.removesuffix(" (parameter=top_logprobs)")
