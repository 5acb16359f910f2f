"""How a fake vLLM reads requests: prompts, sampling parameters, and what it refuses."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from rlbridge.testing.byte_tokenizer import ByteTokenizer
from rlbridge.testing.vllm_model import Sample

Json = dict[str, Any]


class EngineFault(StrEnum):
    """One thing that goes wrong with one generation."""

    RESET = "reset"
    """The connection is reset before any header."""
    RESET_MID_BODY = "reset_mid_body"
    """The connection is reset after half the answer, or half the stream."""
    SLOW = "slow"
    """No answer until long after any deadline."""
    ABORT = "abort"
    """A 200 with half the tokens and `finish_reason: abort`."""
    STATUS_500 = "status_500"
    STATUS_503 = "status_503"
    STATUS_429 = "status_429"
    TRUNCATED_JSON = "truncated_json"
    LOST_LOGPROBS = "lost_logprobs"
    """A reply with fewer logprobs than tokens."""
    OTHER_PROMPT = "other_prompt"
    """The engine is prompted with other IDs than were sent."""


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of the answer.
        body: JSON, or bytes of another `kind`.
        kind: its content type.
        in_stream: it comes as an event, behind a 200.
    """

    def __init__(
        self,
        status: int,
        body: Json | bytes,
        kind: str = "application/json",
        *,
        in_stream: bool = False,
    ) -> None:
        super().__init__(status)
        self.status, self.body, self.kind, self.in_stream = status, body, kind, in_stream


@dataclass(frozen=True)
class Requests:
    """Reads requests as a server of this kind does; see `VllmServer`."""

    tokenizer: ByteTokenizer
    model: str
    kind: Literal["vllm", "nemo_rl", "text"]
    token_chat: bool
    tool_parser: bool
    max_model_len: int

    def tokenized(self, body: Json) -> list[int]:
        """The IDs of a `/tokenize` request."""
        return self.rendered(body) if "messages" in body else self.tokenizer.encode(body["prompt"])

    def rendered(self, body: Json) -> list[int]:
        """The chat template's IDs."""
        ids: list[int] = self.tokenizer.apply_chat_template(
            body["messages"],
            tools=body.get("tools"),
            add_generation_prompt=body.get("add_generation_prompt", True),
        )
        return ids

    def prompt(self, wire: str, body: Json) -> list[int]:
        """The IDs that the engine is prompted with."""
        if wire == "generate":
            return list(body["token_ids"])
        if wire == "completions":
            prompt = body["prompt"]
            return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not body.get("messages"):
            raise _refused("messages: Field required", "messages")
        if body.get("tools") and not self.tool_parser and self.kind == "vllm":
            wanted = body.get("tool_choice", "auto")
            if wanted != "none":
                needs = "--enable-auto-tool-choice and --tool-call-parser to be set"
                raise _refused(f'"{wanted}" tool choice requires {needs}', None)
        given = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
        if given and self.token_chat and self.kind != "text":
            return list(given)
        return self.rendered(body)

    def params(self, wire: str, body: Json, prompt: list[int]) -> Json:
        """The sampling parameters, checked as vLLM does; `max_tokens` is always there."""
        params = dict(body.get("sampling_params") or {}) if wire == "generate" else dict(body)
        wanted = params.get("max_completion_tokens") or params.get("max_tokens")
        default = 16 if wire == "completions" else self.max_model_len
        params["max_tokens"] = default if wanted is None else wanted
        self.check(prompt, params, body, wire)
        return params

    def check(self, prompt: list[int], params: Json, body: Json, wire: str) -> None:
        """Refuses what vLLM does, and cuts `max_tokens` to the room there is."""
        if body.get("model", self.model) != self.model:
            message = f"The model `{body['model']}` does not exist. Valid aliases: {self.model}."
            raise RefusedError(404, error_body(message, "NotFoundError", "model", 404))
        beyond = [token for token in prompt if token >= self.tokenizer.vocab_size]
        if beyond:
            message = f"Token id {beyond[0]} is out of vocabulary"
            raise _refused(message, None)
        room = self.max_model_len - len(prompt)
        if room < 1:
            message = (
                f"This model's maximum context length is {self.max_model_len} tokens. However, "
                f"your prompt contains {len(prompt)} input tokens, which exceeds this limit."
            )
            raise _refused(message, "input_tokens")
        given = params["max_tokens"]
        if given < 1 or (wire != "generate" and given > self.max_model_len):
            message = f"max_tokens={given} cannot be greater than max_model_len or less than 1"
            raise _refused(message, "max_tokens")
        params["max_tokens"] = min(given, room)


def aborted(sample: Sample, count: int) -> Sample:
    """The sample as it is when the engine is told to stop after `count` tokens."""
    return replace(
        sample,
        token_ids=sample.token_ids[:count],
        logprobs=sample.logprobs[:count],
        text_ids=sample.text_ids[:count],
        cut=0,
        finish="abort",
        stop_reason=None,
    )


def _refused(message: str, param: str | None) -> RefusedError:
    return RefusedError(400, error_body(message, "BadRequestError", param))


def error_body(message: str, kind: str, param: str | None, status: int = 400) -> Json:
    """An error in vLLM's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
