"""What a fake engine's replies are made of, whole ones and chunks: usage, logprobs, calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlbridge.parsing.message import ToolCall, call_id
from rlbridge.parsing.style import ReasoningStyle, Style, ToolStyle
from rlbridge.testing.byte_tokenizer import ByteTokenizer
from rlbridge.testing.vllm_model import Sample

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parsers:
    """Which parsers the server runs with (`--tool-call-parser`, `--reasoning-parser`)."""

    tools: bool = False
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the replies to one request.

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

    def head(self, route: str) -> Json:
        """What every reply to a route begins with."""
        kind = "chat.completion.chunk" if route == "chat" else "text_completion"
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def usage(self, samples: Sequence[Sample]) -> Json:
        """Counts of tokens."""
        sampled = sum(len(sample.token_ids) for sample in samples)
        usage = {
            "prompt_tokens": len(self.prompt),
            "total_tokens": len(self.prompt) + sampled,
            "completion_tokens": sampled,
            "prompt_tokens_details": None,
        }
        # NeMo-RL's vLLM is an older one.
        return usage if self.token_names else usage | {"completion_tokens_details": None}

    def text(self, sample: Sample) -> str:
        """A sample's text."""
        params = self.body.get("sampling_params") or self.body
        skip = params.get("skip_special_tokens", True)
        text = self.tokenizer.decode(sample.text_ids, skip_special_tokens=skip)
        return text[: len(text) - sample.cut]

    def style(self) -> Style:
        """What the server's parsers look for in the answer to this request."""
        tools = self.parsers.tools and self.body.get("tools")
        if self.body.get("tool_choice") == "none":
            tools = False
        return Style(
            ToolStyle.HERMES if tools else ToolStyle.NONE,
            ReasoningStyle.THINK if self.parsers.reasoning else ReasoningStyle.NONE,
        )

    def call(self, call: ToolCall, index: int) -> Json:
        """A tool call; vLLM's Hermes parser reads the arguments and writes them anew."""
        return {
            "id": f"chatcmpl-tool-{call_id(self.reply_id, index)}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(json.loads(call.arguments), ensure_ascii=False),
            },
        }

    def wants_logprobs(self) -> bool:
        """Whether a chat asked for logprobs; with `top_logprobs: null` vLLM gives none."""
        return bool(self.body.get("logprobs")) and self.body.get("top_logprobs", 0) is not None

    def chat_logprobs(self, sample: Sample) -> Json:
        """Logprobs as a chat has them."""
        entries = []
        for token, logprob in zip(sample.token_ids, sample.logprobs, strict=True):
            named = {"token": self._name(token), "logprob": logprob, "bytes": self._bytes(token)}
            top = [dict(named)] if self.body.get("top_logprobs") else []
            entries.append({**named, "top_logprobs": top})
        return {"content": entries}

    def plain_logprobs(self, sample: Sample) -> Json:
        """Logprobs as a completion has them."""
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

    def generated(self, index: int, sample: Sample, text: bool) -> Json:
        """A choice of `/inference/v1/generate`."""
        params = self.body.get("sampling_params") or {}
        choice: Json = {
            "index": index,
            "finish_reason": sample.finish,
            "stop_reason": sample.stop_reason,
            "token_ids": sample.token_ids,
            "routed_experts": None,
            "sampling_mask": None,
            "weight_versions": self.versions(len(sample.token_ids)),
            "logprobs": None,
        }
        if text:
            choice["text"] = self.text(sample)
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

    def versions(self, count: int) -> list[Json]:
        """The weights of so many tokens."""
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
