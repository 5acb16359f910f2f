"""A fake engine's streams in the shapes of vLLM 0.32, as server-sent events."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from rlbridge.parsing.stream import StreamParser
from rlbridge.testing.vllm_model import Sample
from rlbridge.testing.vllm_parts import Parts

Json = dict[str, Any]
DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Streamer(Parts):
    """Writes the chunks of the streamed reply to one request."""

    def chunks(self, route: str, sample: Sample, *, text: bool) -> Iterator[Json]:
        """The chunks of a stream: one a token, then the usage where it was asked for."""
        parser = StreamParser(self.style()) if route == "chat" else None
        if route == "chat":
            yield self._chat_chunk({"role": "assistant", "content": ""}, None, None, first=True)
        seen, calls = "", 0
        for count in range(1, len(sample.token_ids) + 1):
            last = count == len(sample.token_ids)
            part = self._part(sample, count)
            whole = self.text(part)
            if not last and whole.endswith("\ufffd"):  # half a character waits for the other half
                whole = whole.rstrip("\ufffd")
            if not last:  # what may become a stop string waits too
                whole = whole[: max(len(seen), len(whole) - self._held_back())]
            new, seen = whole[len(seen) :], whole
            if parser is None:
                yield self._chunk(route, part, new, count if last else 0, text=text)
                continue
            delta, calls = self._delta(parser, new, calls, last=last)
            finish = part.finish or None
            yield self._chat_chunk(
                delta, part, "tool_calls" if finish == "stop" and calls else finish
            )
        if (self.body.get("stream_options") or {}).get("include_usage"):
            usage = {
                name: count for name, count in self.usage([sample]).items() if count is not None
            }
            yield {**self.head(route), "choices": [], "usage": usage}

    def _held_back(self) -> int:
        params = self.body.get("sampling_params") or self.body
        stops = params.get("stop") or ()
        return max((len(stop) - 1 for stop in ([stops] if isinstance(stops, str) else stops)),
                   default=0)  # fmt: skip

    def _part(self, sample: Sample, count: int) -> Sample:
        """The sample's token number `count`, with the text up to it."""
        last = count == len(sample.token_ids)
        return Sample(
            sample.token_ids[count - 1 : count],
            sample.logprobs[count - 1 : count],
            sample.text_ids[:count],
            sample.cut if last else 0,
            sample.finish if last else "",
            sample.stop_reason if last else None,
        )

    def _delta(self, parser: StreamParser, new: str, calls: int, *, last: bool) -> tuple[Json, int]:
        """A chat delta, and how many tool calls there are by now."""
        parsed = [parser.feed(new)] + ([parser.finish()] if last else [])
        delta: Json = {}
        if content := "".join(piece.content for piece in parsed):
            delta["content"] = content
        if reasoning := "".join(piece.reasoning for piece in parsed):
            delta["reasoning"] = reasoning
        done = [call for piece in parsed for call in piece.tool_calls]
        if done:
            delta["tool_calls"] = [
                {"index": calls + index, **self.call(call, calls + index)}
                for index, call in enumerate(done)
            ]
        return delta, calls + len(done)

    def _chunk(self, route: str, part: Sample, new: str, total: int, *, text: bool) -> Json:
        """A chunk of a stream that is no chat; `total` tokens where it is the last."""
        finish = part.finish or None
        if route == "generate":
            choice = self.generated(0, part, text) | {"finish_reason": finish}
            choice["weight_versions"] = self.versions(total) if total else None
            if text:
                choice["text"] = new
            return {
                "request_id": self.reply_id,
                "usage": None,
                "output_mode": "text" if text else "tokens",
                "choices": [choice],
            }
        asked = bool(self.body.get("return_token_ids"))
        first = len(part.text_ids) <= 1
        choice = {
            "index": 0,
            "text": new,
            "logprobs": self.plain_logprobs(part) if "logprobs" in self.body else None,
            "finish_reason": finish,
            "stop_reason": part.stop_reason,
            "prompt_token_ids": list(self.prompt) if asked and first else None,
            "token_ids": part.token_ids if asked else None,
        }
        return {**self.head(route), "choices": [choice]}

    def _chat_chunk(
        self, delta: Json, part: Sample | None, finish: str | None, *, first: bool = False
    ) -> Json:
        asked = bool(self.body.get("return_token_ids"))
        choice: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if part is not None:
            choice["logprobs"] = self.chat_logprobs(part) if self.wants_logprobs() else None
            choice["token_ids"] = part.token_ids if asked else None
            if finish:
                choice["stop_reason"] = part.stop_reason
        chunk = {**self.head("chat"), "choices": [choice]}
        if first:
            chunk |= {"prompt_token_ids": list(self.prompt) if asked else None, "prompt_text": None}
        return chunk


def event(chunk: Any) -> bytes:
    """A chunk, or an error, as a server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
