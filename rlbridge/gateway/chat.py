"""Chat completions as the `openai` client reads them, whole and in chunks; completions likewise.

Token fields go where each consumer looks: on `choice.message` for Gym and NeMo-RL; at the top and
on the choice where `return_token_ids` asks for vLLM's; in `logprobs` as `"token_id:N"` where
`return_tokens_as_token_ids` does. In a stream they come with the last chunk of the choice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from rlbridge.contracts import wire
from rlbridge.contracts.codecs.engine import TOKEN_ID_PREFIX
from rlbridge.contracts.tokens import IntArray
from rlbridge.gateway.outcome import Answer, Outcome
from rlbridge.onpolicy.tokenizer import ChatTokenizer, decode

_DUMP = orjson.OPT_SERIALIZE_NUMPY
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of an answer's tokens a request wants to see.

    Attributes:
        fields: Gym's token fields on the message.
        token_ids: vLLM's `return_token_ids`.
        logprobs: OpenAI's.
        as_ids: tokens in the logprobs as `"token_id:N"`.
        usage: a last chunk with the usage, in a stream.
    """

    fields: bool
    token_ids: bool = False
    logprobs: bool = False
    as_ids: bool = False
    usage: bool = False

    @classmethod
    def of(cls, body: Mapping[str, Any], *, fields: bool) -> "Wanted":
        """What a request's body asks for."""
        options = body.get("stream_options") or {}
        logprobs = body.get("logprobs")
        return cls(
            fields,
            bool(body.get("return_token_ids")),
            logprobs is not None and logprobs is not False,
            bool(body.get("return_tokens_as_token_ids")),
            bool(options.get("include_usage")),
        )


class ChatWriter:
    """Writes replies of `/v1/chat/completions`.

    Args:
        tokenizer: for the text of single tokens.
        outcome: what to write.
        wanted: what of its tokens.
    """

    def __init__(self, tokenizer: ChatTokenizer, outcome: Outcome, wanted: Wanted) -> None:
        self._tokenizer = tokenizer
        self._outcome = outcome
        self._wanted = wanted
        self._prompt = prompt_fragment(outcome) if wanted.fields or wanted.token_ids else None

    def body(self) -> bytes:
        """The whole reply."""
        outcome = self._outcome
        reply: dict[str, Any] = {
            "id": f"chatcmpl-{outcome.name}",
            "object": "chat.completion",
            "created": outcome.created_s,
            "model": outcome.model,
            "choices": [
                self._choice(index, answer) for index, answer in enumerate(outcome.answers)
            ],
            "usage": outcome.usage(),
        }
        if self._wanted.token_ids and self._prompt is not None:
            reply[wire.PROMPT_TOKEN_IDS] = self._prompt
        return orjson.dumps(reply, option=_DUMP)

    def last_chunks(self, index: int, answer: Answer, head: Mapping[str, Any]) -> Iterator[bytes]:
        """The chunk that ends a choice."""
        choice = {
            "index": index,
            "delta": self._fields(answer),
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            **self._token_ids(answer),
        }
        chunk = {**head, "choices": [choice]}
        if self._wanted.token_ids and self._prompt is not None:
            chunk[wire.PROMPT_TOKEN_IDS] = self._prompt
        yield event(chunk)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"refusal": None, **answer.message, **self._fields(answer)},
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            **self._token_ids(answer),
        }

    def _fields(self, answer: Answer) -> dict[str, Any]:
        return token_fields(answer, self._prompt) if self._wanted.fields else {}

    def _token_ids(self, answer: Answer) -> dict[str, Any]:
        if not self._wanted.token_ids or answer.call is None:
            return {}
        return {wire.TOKEN_IDS: sampled_ids(answer)}

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if not self._wanted.logprobs or answer.call is None:
            return None
        content = token_logprobs(self._tokenizer, answer, as_ids=self._wanted.as_ids)
        return {"content": content, "refusal": None}


class CompletionWriter:
    """Writes replies of `/v1/completions`.

    Args:
        tokenizer: for the text of single tokens.
        outcome: what to write.
        wanted: what of its tokens.
    """

    def __init__(self, tokenizer: ChatTokenizer, outcome: Outcome, wanted: Wanted) -> None:
        self._tokenizer = tokenizer
        self._outcome = outcome
        self._wanted = wanted

    def choices(self, first: int = 0) -> list[dict[str, Any]]:
        """The choices, numbered from `first`."""
        return [
            self.choice(first + index, answer) for index, answer in enumerate(self._outcome.answers)
        ]

    def choice(self, index: int, answer: Answer, *, text: str | None = None) -> dict[str, Any]:
        """One choice, with `text` for its text where the rest was sent before."""
        choice: dict[str, Any] = {
            "index": index,
            "text": answer.text if text is None else text,
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if answer.call is None:
            return choice
        if self._wanted.token_ids:
            choice[wire.TOKEN_IDS] = sampled_ids(answer)
            choice[wire.PROMPT_TOKEN_IDS] = answer.call.prompt().token_ids
        if self._wanted.fields:
            choice |= token_fields(answer, prompt_fragment(self._outcome))
        return choice

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        if not self._wanted.logprobs or answer.call is None:
            return None
        entries = token_logprobs(self._tokenizer, answer, as_ids=self._wanted.as_ids)
        offsets, at = [], 0
        for entry in entries:
            offsets.append(at)
            at += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "text_offset": offsets,
            "top_logprobs": None,
        }


def chunk_head(outcome_name: str, created_s: int, model: str) -> dict[str, Any]:
    """What every chunk of a chat stream begins with."""
    return {
        "id": f"chatcmpl-{outcome_name}",
        "object": "chat.completion.chunk",
        "created": created_s,
        "model": model,
    }


def delta_chunk(head: Mapping[str, Any], index: int, delta: Mapping[str, Any]) -> bytes:
    """A chunk with a piece of an answer."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    return event({**head, "choices": [choice]})


def event(data: object) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(data, option=_DUMP) + b"\n\n"


def prompt_fragment(outcome: Outcome) -> orjson.Fragment | None:
    """The prompt's IDs as JSON, written once and used wherever they are wanted."""
    call = outcome.answers[0].call
    return orjson.Fragment(b"[" + call.prompt_json() + b"]") if call is not None else None


def token_fields(answer: Answer, prompt: orjson.Fragment | None) -> dict[str, Any]:
    """Gym's three fields; none where a logprob is missing, because Gym would drop them all."""
    call = answer.call
    if call is None or prompt is None:
        return {}
    logprobs = [span.logprobs for span in call.generation]
    if any(bool(np.isnan(part).any()) for part in logprobs):
        return {}
    return {
        wire.PROMPT_TOKEN_IDS: prompt,
        wire.GENERATION_TOKEN_IDS: sampled_ids(answer),
        wire.GENERATION_LOG_PROBS: logprobs[0] if len(logprobs) == 1 else np.concatenate(logprobs),
    }


def sampled_ids(answer: Answer) -> IntArray:
    """int32 [n]: what was sampled."""
    spans = answer.call.generation if answer.call is not None else ()
    if len(spans) == 1:
        return spans[0].token_ids
    joined: IntArray = np.concatenate([np.empty(0, np.int32), *(span.token_ids for span in spans)])
    return joined


def token_logprobs(
    tokenizer: ChatTokenizer, answer: Answer, *, as_ids: bool
) -> list[dict[str, Any]]:
    """OpenAI's logprobs of the sampled tokens; a missing one is vLLM's -9999."""
    entries = []
    for span in answer.call.generation if answer.call is not None else ():
        for token, logprob in zip(span.token_ids.tolist(), span.logprobs.tolist(), strict=True):
            text = f"{TOKEN_ID_PREFIX}{token}" if as_ids else decode(tokenizer, [token])
            entries.append(
                {
                    "token": text,
                    "logprob": logprob if logprob == logprob else -9999.0,
                    "bytes": None if as_ids else list(text.encode()),
                    "top_logprobs": [],
                }
            )
    return entries
