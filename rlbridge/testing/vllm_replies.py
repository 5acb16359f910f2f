"""A fake engine's whole replies in the shapes of vLLM 0.32."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlbridge.parsing.stream import parse
from rlbridge.testing.vllm_model import Sample
from rlbridge.testing.vllm_parts import Parts

Json = dict[str, Any]
_FINGERPRINT = "vllm-0.32.0-fake"


@dataclass(frozen=True, slots=True)
class Writer(Parts):
    """Writes the whole replies to one request."""

    def reply(self, route: str, samples: Sequence[Sample], *, text: bool) -> Json:
        """The reply to a route; with `text` in the text mode of `generate`."""
        if route == "generate":
            return self.generate(samples, text=text)
        return self.chat(samples) if route == "chat" else self.completion(samples)

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
                    "logprobs": self.chat_logprobs(sample) if self.wants_logprobs() else None,
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
                "text": self.text(sample),
                "logprobs": self.plain_logprobs(sample) if "logprobs" in self.body else None,
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
        choices = [self.generated(index, sample, text) for index, sample in enumerate(samples)]
        asked = text and self.body.get("return_token_ids")
        return {
            "request_id": self.reply_id,
            "model": self.model,
            "created": self.created,
            "usage": self.usage(samples),
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

    def _whole(self, kind: str, choices: list[Json], samples: Sequence[Sample]) -> Json:
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": self.usage(samples),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _message(self, sample: Sample) -> tuple[Json, str]:
        """The message, parsed as the server's parsers do, and the finish reason."""
        message: Json = {
            "role": "assistant",
            "content": self.text(sample),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        parsed = parse(message["content"], self.style())
        message |= {"content": parsed.content or "", "reasoning": parsed.reasoning}
        if not parsed.tool_calls:
            return message, sample.finish
        message["content"] = parsed.content
        message["tool_calls"] = [
            self.call(call, index) for index, call in enumerate(parsed.tool_calls)
        ]
        return message, "tool_calls" if sample.finish == "stop" else sample.finish


def add_message_fields(reply: Json, prompt: Sequence[int], samples: Sequence[Sample]) -> None:
    """Put tokens on the messages, as NeMo-RL does after v0.7.0."""
    for choice, sample in zip(reply["choices"], samples, strict=True):
        choice["message"] |= {
            "prompt_token_ids": list(prompt),
            "generation_token_ids": sample.token_ids,
            "generation_log_probs": sample.logprobs,
        }


def text_alone(reply: Json) -> Json:
    """The reply of a server that knows nothing of tokens."""
    said = {name: value for name, value in reply.items() if value is not None}
    for choice in said["choices"]:
        choice.pop("token_ids", None)
    said.pop("prompt_token_ids", None)
    return said
