"""One answered call, held as what it added to the call it went on from. Never a copy of a prompt.

A dialogue of 128 calls would hold 128 prompts, each with the one before inside; so a call keeps
the tokens behind its base's alone. The whole prompt is kept for the calls nobody went on from,
which are what the next prompt is made of, and put together again for all others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import Encoding, IntArray, LogprobsMode, PromptSpan, SampledSpan


@dataclass(slots=True, eq=False)
class Call:
    """A call and its answer.

    Attributes:
        number: of the call in its session, from 0.
        call_id: equal for all answers to one call that the client sent more than once.
        base: the call whose tokens, prompt and answer, begin this one's prompt; None for none.
        added: the prompt's tokens behind the base's; the whole prompt without a base.
        generation: what was sampled.
        message: the answer in Chat form, as the client got it, token fields left out.
        seed: names the answer in replies' IDs.
        text: prompt and answer as text, of plain completions; else empty.
        finish: why the engine stopped.
        stop_reason: the stop token's ID or the stop string.
        sampling: as sent.
        logprobs_mode: what the logprobs are of.
        encoding: the tokenizer and template that made the prompt.
        prompt_length: tokens of the whole prompt.
        length: tokens of the whole prompt and the answer.
    """

    number: int
    call_id: str
    base: "Call | None"
    added: PromptSpan
    generation: tuple[SampledSpan, ...]
    message: Mapping[str, Any]
    seed: str = ""
    text: str = ""
    finish: FinishReason = FinishReason.UNKNOWN
    stop_reason: int | str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs_mode: LogprobsMode | None = None
    encoding: Encoding | None = None
    prompt_length: int = field(init=False)
    length: int = field(init=False)
    _prompt: PromptSpan | None = field(init=False, default=None)
    _json: bytes = field(init=False, default=b"")

    def __post_init__(self) -> None:
        base = self.base
        self.prompt_length = len(self.added) + (base.length if base else 0)
        self.length = self.prompt_length + self.sampled
        if base is not None:
            base._prompt = None

    @property
    def sampled(self) -> int:
        """How many tokens were sampled."""
        return sum(map(len, self.generation))

    @property
    def held(self) -> int:
        """How many tokens this call keeps in memory."""
        return len(self.added) + self.sampled

    def keep(self, prompt: PromptSpan) -> None:
        """Keep the whole prompt until another call goes on from this one."""
        self._prompt = prompt

    def prompt(self) -> PromptSpan:
        """The whole prompt."""
        if self._prompt is not None:
            return self._prompt
        if self.base is None:
            return self.added
        parts: list[PromptSpan | SampledSpan] = []
        call: Call | None = self
        while call is not None:
            whole = call._prompt if call is not self else None
            parts.append(whole if whole is not None else call.added)
            call = None if whole is not None else call.base
            if call is not None:
                parts.extend(reversed(call.generation))
        return PromptSpan.joined(parts[::-1])

    def prompt_json(self) -> bytes:
        """The prompt's IDs as JSON numbers with commas, without the brackets.

        Most of them were written for the base's reply, and are kept until they are used here.
        """
        base = self.base
        if base is not None and base._json:
            prompt = b",".join(filter(None, [base._json, _numbers(self.added.token_ids)]))
            base._json = b""
        elif self._json:
            return _numbers(self.prompt().token_ids)
        else:
            prompt = _numbers(self.prompt().token_ids)
        sampled = [_numbers(span.token_ids) for span in self.generation]
        self._json = b",".join([prompt, *sampled])
        return prompt

    def turn(self) -> Turn:
        """The call as the engine saw it."""
        return Turn(
            self.prompt(),
            self.generation,
            self.finish,
            self.stop_reason,
            self.sampling,
            self.logprobs_mode,
            self.encoding,
            self.call_id,
        )


def _numbers(ids: IntArray) -> bytes:
    return orjson.dumps(np.ascontiguousarray(ids), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
