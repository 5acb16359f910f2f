"""An inference engine that costs next to nothing: vLLM's wire, without a model.

Every call gets the same answer; the prompt's IDs, where a request brings them, are copied into
the reply as bytes, so that a long history costs the stub as good as nothing. It knows the wires a
gateway may choose: token-in chat, `/inference/v1/generate`, `/v1/completions`, plain chat.
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.stub_http import Send, running, serve

MODEL = "stub"
MAX_MODEL_LEN = 1 << 20
_MARK = b"\x00ids\x00"
_COUNT = b"\x00count\x00"


@dataclass(frozen=True)
class Answer:
    """What the stub says to every call.

    Attributes:
        text: without special tokens.
        token_ids: of the text, with the turn end.
        prompt_ids: what it says a prompt of messages was.
    """

    text: str
    token_ids: Sequence[int]
    prompt_ids: Sequence[int]


def _entries(answer: Answer, *, as_ids: bool) -> list[dict[str, Any]]:
    return [
        {
            "token": f"token_id:{token}" if as_ids else "word",
            "logprob": -0.1 - token % 7 / 10,
            "bytes": [119, 111, 114, 100],
            "top_logprobs": [],
        }
        for token in answer.token_ids
    ]


def _usage(answer: Answer) -> dict[str, Any]:
    return {"prompt_tokens": _COUNT.decode(), "completion_tokens": len(answer.token_ids),
            "total_tokens": _COUNT.decode()}  # fmt: skip


def _chat(answer: Answer, *, as_ids: bool) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None, "reasoning": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": _entries(answer, as_ids=as_ids)},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": list(answer.token_ids),
    }
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": _usage(answer),
        "prompt_token_ids": _MARK.decode(),
    }


def _completion(answer: Answer) -> dict[str, Any]:
    entries = _entries(answer, as_ids=True)
    choice = {
        "index": 0,
        "text": answer.text,
        "logprobs": {
            "text_offset": list(range(len(entries))),
            "token_logprobs": [entry["logprob"] for entry in entries],
            "tokens": [entry["token"] for entry in entries],
            "top_logprobs": None,
        },
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": list(answer.token_ids),
        "prompt_token_ids": _MARK.decode(),
    }
    return {
        "id": "cmpl-stub",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        "usage": _usage(answer),
    }


def _generate(answer: Answer) -> dict[str, Any]:
    content = [
        {"token_id": token, "logprob": -0.1 - token % 7 / 10, "rank": 1, "top_logprobs": []}
        for token in answer.token_ids
    ]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": list(answer.token_ids),
        "logprobs": {"content": content},
    }
    return {
        "request_id": "generate-tokens-stub",
        "model": MODEL,
        "created": 1,
        "usage": _usage(answer),
        "choices": [choice],
    }


def _parts(body: Mapping[str, Any]) -> list[bytes]:
    """A reply's JSON, cut where the prompt's IDs and their count belong."""
    text = json.dumps(body, separators=(",", ":")).encode()
    for mark in (_MARK, _COUNT):
        text = text.replace(json.dumps(mark.decode()).encode(), mark)
    return text.split(_MARK) if _MARK in text else [text]


class Replies:
    """The stub's replies as bytes."""

    def __init__(self, answer: Answer) -> None:
        self._default_ids = _ids(answer.prompt_ids)
        self._chat = {as_ids: _parts(_chat(answer, as_ids=as_ids)) for as_ids in (False, True)}
        self._completion = _parts(_completion(answer))
        self._generate = _parts(_generate(answer))
        model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "stub", "root": MODEL,
                 "parent": None, "max_model_len": MAX_MODEL_LEN}  # fmt: skip
        tokens = {"count": len(answer.prompt_ids), "max_model_len": MAX_MODEL_LEN,
                  "tokens": list(answer.prompt_ids), "token_strs": None}  # fmt: skip
        self._plain = {
            b"/health": _http(b""),
            b"/ping": _http(b""),
            b"/version": _http(b'{"version":"0.32.0"}'),
            b"/v1/models": _http(json.dumps({"object": "list", "data": [model]}).encode()),
            b"/tokenize": _http(json.dumps(tokens).encode()),
            b"/reset_prefix_cache": _http(b""),
        }

    def to(self, route: bytes, body: bytes) -> bytes:
        """The reply to one request."""
        if route == b"/v1/chat/completions":
            as_ids = b'"return_tokens_as_token_ids":true' in body.replace(b": true", b":true")
            return self._filled(self._chat[as_ids], _slice(body, b'"prompt_token_ids"'))
        if route == b"/v1/completions":
            return self._filled(self._completion, _slice(body, b'"prompt"'))
        if route == b"/inference/v1/generate":
            return self._filled(self._generate, _slice(body, b'"token_ids"'))
        return self._plain.get(route) or _http(b'{"detail":"Not Found"}', b"404 Not Found")

    def _filled(self, parts: list[bytes], ids: bytes | None) -> bytes:
        given = self._default_ids if ids is None else ids
        count = b"%d" % (given.count(b",") + 1)
        return _http(given.join(parts).replace(_COUNT, count))


def _ids(ids: Sequence[int]) -> bytes:
    return json.dumps(list(ids), separators=(",", ":")).encode()


def _slice(body: bytes, name: bytes) -> bytes | None:
    """The list of numbers behind `name` in a JSON body, as it stands there."""
    at = body.find(name)
    start = body.find(b"[", at) if at >= 0 else -1
    return body[start : body.index(b"]", start) + 1] if start >= 0 else None


def _http(body: bytes, status: bytes = b"200 OK") -> bytes:
    return (
        b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        % (status, len(body))
    ) + body


@contextlib.contextmanager
def running_stub(
    answer: Answer, *, port: int = 0, delay_s: float = 0.0
) -> Iterator[tuple[str, int]]:
    """Base URL and process ID of a stub in a process of its own; ended on leaving."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asdict(answer), file)
        file.flush()
        options = (file.name, "--port", str(port), "--delay-s", str(delay_s))
        with running("benchmarks.stub_engine", *options) as stub:
            yield stub


async def _main(answer: Answer, port: int, delay_s: float) -> None:
    replies = Replies(answer)
    loop = asyncio.get_running_loop()

    def reply(head: bytes, body: bytes, send: Send) -> None:
        said = replies.to(head.split(b" ", 2)[1], body)
        if delay_s and head.startswith(b"POST"):
            loop.call_later(delay_s, send, said)
        else:
            send(said)

    await serve(reply, port)


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answer", type=Path, help="JSON file: text, token_ids, prompt_ids")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0.0)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        said = Answer(**json.loads(options.answer.read_text()))
        uvloop.run(_main(said, options.port, options.delay_s))
