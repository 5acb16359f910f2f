"""What became of a request, before it takes the shape of one of OpenAI's replies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlbridge.contracts.rollout import FinishReason
from rlbridge.gateway.calls import Call


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        message: in Chat form, without token fields.
        text: as sampled, special tokens left out.
        finish: why the engine stopped.
        stop_reason: the stop token's ID or the stop string.
        call: its tokens; None where the engine gave none.
    """

    message: Mapping[str, Any]
    text: str
    finish: FinishReason
    stop_reason: int | str | None = None
    call: Call | None = None

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words."""
        if self.message.get("tool_calls") and self.finish in {FinishReason.STOP,
                                                              FinishReason.UNKNOWN}:  # fmt: skip
            return "tool_calls"
        return "stop" if self.finish is FinishReason.UNKNOWN else self.finish.value


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers to one request.

    Attributes:
        name: of the first answer, for IDs in replies.
        model: as clients know it.
        created_s: Unix time.
        answers: one each.
        prompt_tokens: the prompt's length, as far as anybody knows.
        cached_tokens: how much of it the engine's prefix cache held; None if nobody said.
        completion_tokens: sampled, all answers together; 0 where nobody knows.
        headers: what to tell a client that looks at headers.
    """

    name: str
    model: str
    created_s: int
    answers: tuple[Answer, ...]
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    headers: Mapping[str, str]

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage` of Chat and completions."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage
