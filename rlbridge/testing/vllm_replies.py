"""A fake engine's replies in the shapes of vLLM 0.32, whole and as server-sent events."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from rlbridge.parsing.message import ToolCall, call_id
from rlbridge.parsing.stream import StreamParser, parse
from rlbridge.parsing.style import ReasoningStyle, Style, ToolStyle
from rlbridge.testing.byte_tokenizer import ByteTokenizer
from rlbridge.testing.vllm_model import Sample

Json = dict[str, Any]
_FINGERPRINT = "vllm-0.32.0-fake"


@dataclass(frozen=True, slots=True)
class Parsers:
    """Which parsers the server runs with (`--tool-call-parser`, `--reasoning-parser`)."""

    tools: bool = False
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the replies to one request.

    Attributes:
        tokenizer: of the model.
        model: the name served.
        reply_id: of the reply.
        created: Unix time.
        body: the request.
        prompt: its IDs.
        version: of the weights.
        parsers: of the server.
        token_names: the server gives tokens as `token_id:N` unasked (NeMo-RL's).
    """

    tokenizer: ByteTokenizer
    model: str
    reply_id: str
    created: int
    body: Mapping[str, Any]
    prompt: Sequence[int]
    version: str
    parsers: Parsers
    token_names: bool = False

    def chat(self, samples: Sequence[Sample]) -> Json:
        """A `/v1/chat/completions` reply."""
        asked = bool(self.body.get("return_token_ids"))
        choices = []
        for index, sample in enumerate(samples):
            message, finish = self._message(sample)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._chat_logprobs(sample) if self._wants_logprobs() else None,
                    "finish_reason": finish,
                    "stop_reason": sample.stop_reason,
                    "token_ids": sample.token_ids if asked else None,
                    "routed_experts": None,
                }
            )
        return self._whole("chat.completion", choices, samples) | {
            "prompt_logprobs": None,
            "prompt_token_ids": list(self.prompt) if asked else None,
            "prompt_text": None,
        }

    def completion(self, samples: Sequence[Sample]) -> Json:
        """A `/v1/completions` reply."""
        asked = bool(self.body.get("return_token_ids"))
        choices = [
            {
                "index": index,
                "text": self._text(sample),
                "logprobs": self._plain_logprobs(sample) if "logprobs" in self.body else None,
                "finish_reason": sample.finish,
                "stop_reason": sample.stop_reason,
                "token_ids": sample.token_ids if asked else None,
                "prompt_logprobs": None,
                "prompt_token_ids": list(self.prompt) if asked else None,
                "routed_experts": None,
            }
            for index, sample in enumerate(samples)
        ]
        return self._whole("text_completion", choices, samples)

    def generate(self, samples: Sequence[Sample], *, text: bool) -> Json:
        """An `/inference/v1/generate` reply; with `text` in text mode."""
        choices = [self._generated(index, sample, text) for index, sample in enumerate(samples)]
        asked = text and self.body.get("return_token_ids")
        return {
            "request_id": self.reply_id,
            "model": self.model,
            "created": self.created,
            "usage": self._usage(samples),
            "prompt_logprobs": None,
            "prompt_token_id_logprobs": None,
            "prompt_token_ids": list(self.prompt) if asked else None,
            "mm_placeholders": None,
            "metrics": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "output_mode": "text" if text else "tokens",
            "choices": choices,
        }

    def chunks(self, route: str, sample: Sample, *, text: bool) -> Iterator[Json]:
        """The chunks of a stream: one a token, then the usage where it was asked for."""
        parser = StreamParser(self._style()) if route == "chat" else None
        if route == "chat":
            yield self._chat_chunk({"role": "assistant", "content": ""}, None, None, first=True)
        seen, calls = "", 0
        for count in range(1, len(sample.token_ids) + 1):
            last = count == len(sample.token_ids)
            part = self._part(sample, count)
            whole = self._text(part)
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
                name: count for name, count in self._usage([sample]).items() if count is not None
            }
            yield {**self._head(route), "choices": [], "usage": usage}

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
                {"index": calls + index, **self._call(call, calls + index)}
                for index, call in enumerate(done)
            ]
        return delta, calls + len(done)

    def _chunk(self, route: str, part: Sample, new: str, total: int, *, text: bool) -> Json:
        """A chunk of a stream that is no chat; `total` tokens where it is the last."""
        finish = part.finish or None
        if route == "generate":
            choice = self._generated(0, part, text) | {"finish_reason": finish}
            choice["weight_versions"] = self._versions(total) if total else None
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
            "logprobs": self._plain_logprobs(part) if "logprobs" in self.body else None,
            "finish_reason": finish,
            "stop_reason": part.stop_reason,
            "prompt_token_ids": list(self.prompt) if asked and first else None,
            "token_ids": part.token_ids if asked else None,
        }
        return {**self._head(route), "choices": [choice]}

    def _chat_chunk(
        self, delta: Json, part: Sample | None, finish: str | None, *, first: bool = False
    ) -> Json:
        asked = bool(self.body.get("return_token_ids"))
        choice: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if part is not None:
            choice["logprobs"] = self._chat_logprobs(part) if self._wants_logprobs() else None
            choice["token_ids"] = part.token_ids if asked else None
            if finish:
                choice["stop_reason"] = part.stop_reason
        chunk = {**self._head("chat"), "choices": [choice]}
        if first:
            chunk |= {"prompt_token_ids": list(self.prompt) if asked else None, "prompt_text": None}
        return chunk

    def _head(self, route: str) -> Json:
        kind = "chat.completion.chunk" if route == "chat" else "text_completion"
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _whole(self, kind: str, choices: list[Json], samples: Sequence[Sample]) -> Json:
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": self._usage(samples),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _usage(self, samples: Sequence[Sample]) -> Json:
        sampled = sum(len(sample.token_ids) for sample in samples)
        usage = {
            "prompt_tokens": len(self.prompt),
            "total_tokens": len(self.prompt) + sampled,
            "completion_tokens": sampled,
            "prompt_tokens_details": None,
        }
        # NeMo-RL's vLLM is an older one.
        return usage if self.token_names else usage | {"completion_tokens_details": None}

    def _text(self, sample: Sample) -> str:
        params = self.body.get("sampling_params") or self.body
        skip = params.get("skip_special_tokens", True)
        text = self.tokenizer.decode(sample.text_ids, skip_special_tokens=skip)
        return text[: len(text) - sample.cut]

    def _message(self, sample: Sample) -> tuple[Json, str]:
        """The message, parsed as the server's parsers do, and the finish reason."""
        message: Json = {
            "role": "assistant",
            "content": self._text(sample),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        parsed = parse(message["content"], self._style())
        message |= {"content": parsed.content or "", "reasoning": parsed.reasoning}
        if not parsed.tool_calls:
            return message, sample.finish
        message["content"] = parsed.content
        message["tool_calls"] = [
            self._call(call, index) for index, call in enumerate(parsed.tool_calls)
        ]
        return message, "tool_calls" if sample.finish == "stop" else sample.finish

    def _style(self) -> Style:
        """What the server's parsers look for in the answer to this request."""
        tools = self.parsers.tools and self.body.get("tools")
        if self.body.get("tool_choice") == "none":
            tools = False
        return Style(
            ToolStyle.HERMES if tools else ToolStyle.NONE,
            ReasoningStyle.THINK if self.parsers.reasoning else ReasoningStyle.NONE,
        )

    def _call(self, call: ToolCall, index: int) -> Json:
        """A tool call; vLLM's Hermes parser reads the arguments and writes them anew."""
        return {
            "id": f"chatcmpl-tool-{call_id(self.reply_id, index)}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(json.loads(call.arguments), ensure_ascii=False),
            },
        }

    def _wants_logprobs(self) -> bool:
        """Whether a chat asked for logprobs; with `top_logprobs: null` vLLM gives none."""
        return bool(self.body.get("logprobs")) and self.body.get("top_logprobs", 0) is not None

    def _chat_logprobs(self, sample: Sample) -> Json:
        entries = []
        for token, logprob in zip(sample.token_ids, sample.logprobs, strict=True):
            named = {"token": self._name(token), "logprob": logprob, "bytes": self._bytes(token)}
            top = [dict(named)] if self.body.get("top_logprobs") else []
            entries.append({**named, "top_logprobs": top})
        return {"content": entries}

    def _plain_logprobs(self, sample: Sample) -> Json:
        names = [self._name(token) for token in sample.token_ids]
        offsets, at = [], 0
        for token in sample.token_ids:
            offsets.append(at)
            at += len(self.tokenizer.decode([token]))
        pairs = zip(names, sample.logprobs, strict=True)
        return {
            "text_offset": offsets,
            "token_logprobs": sample.logprobs,
            "tokens": names,
            "top_logprobs": [{name: logprob} for name, logprob in pairs],
        }

    def _generated(self, index: int, sample: Sample, text: bool) -> Json:
        params = self.body.get("sampling_params") or {}
        choice: Json = {
            "index": index,
            "finish_reason": sample.finish,
            "stop_reason": sample.stop_reason,
            "token_ids": sample.token_ids,
            "routed_experts": None,
            "sampling_mask": None,
            "weight_versions": self._versions(len(sample.token_ids)),
            "logprobs": None,
        }
        if text:
            choice["text"] = self._text(sample)
        if "logprobs" in params:
            entries = []
            for token, logprob in zip(sample.token_ids, sample.logprobs, strict=True):
                named: Json = {"token_id": token, "logprob": logprob, "rank": 1}
                if text:
                    named = {
                        "token": self._name(token),
                        "logprob": logprob,
                        "bytes": self._bytes(token),
                    }
                entries.append({**named, "top_logprobs": [dict(named)]})
            choice["logprobs"] = {"content": entries}
        return choice

    def _versions(self, count: int) -> list[Json]:
        return [{"version": self.version, "start": 0, "end": count}]

    def _name(self, token: int) -> str:
        named = self.body.get("return_tokens_as_token_ids", self.token_names)
        return f"token_id:{token}" if named else self._half(token)

    def _half(self, token: int) -> str:
        """A token's text; half a character has none."""
        text = self.tokenizer.decode([token])
        return "" if text == "\ufffd" else text

    def _bytes(self, token: int) -> list[int]:
        return list(self._half(token).encode())


DONE: Final = b"data: [DONE]\n\n"


def event(chunk: Any) -> bytes:
    """A chunk, or an error, as a server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
