"""What a fake engine samples: scripted or made up, and the same for the same prompt.

A token's logprob is a function of the weights' version, the exact IDs before it and itself, so a
prompt that differs in one token, or other weights, show in every logprob.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlbridge.testing.byte_tokenizer import ByteTokenizer

Answer = str | Sequence[int]
Answers = Answer | Sequence[str] | Callable[[list[int]], Answer] | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Attributes:
        token_ids: sampled, the end included.
        logprobs: of each.
        text_ids: those that are text: without the end, and without what a stop string cut.
        cut: characters of the text that belong to a stop string.
        finish: `stop`, `length` or `abort`.
        stop_reason: as vLLM gives it.
    """

    token_ids: list[int]
    logprobs: list[float]
    text_ids: list[int]
    cut: int
    finish: str
    stop_reason: int | str | None


class FakeModel:
    """Answers to prompts.

    Args:
        answers: text or IDs for every prompt; a list of texts, in turn, the last one for ever
            (requests for one token are probes and take none); a function of the prompt's IDs;
            None for words made of the prompt's hash.
        logprobs_mode: whether logprobs know the temperature.
        tokenizer: its tokenizer.

    Attributes:
        version: of the weights; changes every logprob.
    """

    def __init__(
        self,
        answers: Answers = None,
        *,
        logprobs_mode: Literal["raw", "processed"] = "raw",
        tokenizer: ByteTokenizer | None = None,
    ) -> None:
        self.tokenizer = tokenizer or ByteTokenizer()
        self.version = "default"
        self._answers = answers
        self._processed = logprobs_mode == "processed"
        self._given = 0

    def sample(self, prompt: Sequence[int], params: Mapping[str, Any], index: int = 0) -> Sample:
        """The answer to a prompt.

        Args:
            prompt: IDs.
            params: `max_tokens` (required), `temperature`, `stop`, `stop_token_ids`, `ignore_eos`.
            index: which of `n` answers; they differ where nothing is scripted.
        """
        wanted = self._wanted(list(prompt), index, probe=params["max_tokens"] == 1)
        eos = self.tokenizer.eos_token_id
        if not params.get("ignore_eos") and eos not in wanted:
            wanted = [*wanted, eos]
        ids, cut, finish, reason = self._until_stop(wanted, params)
        if len(ids) >= params["max_tokens"] and (
            len(ids) > params["max_tokens"] or finish == "length"
        ):
            ids, cut, finish, reason = ids[: params["max_tokens"]], 0, "length", None
        ended = finish == "stop" and not isinstance(reason, str)
        return Sample(
            ids,
            self._logprobs(prompt, ids, params),
            ids[:-1] if ended else ids,
            cut,
            finish,
            reason,
        )

    def _wanted(self, prompt: list[int], index: int, *, probe: bool) -> list[int]:
        answers = self._answers
        if callable(answers):
            answer: Any = answers(prompt)
        elif isinstance(answers, list | tuple) and answers and isinstance(answers[0], str):
            answer = answers[min(self._given, len(answers) - 1)]
            self._given += not probe
        else:
            answer = answers
        if answer is None:
            seed = zlib.crc32(np.asarray(prompt, dtype="<i4").tobytes(), index)
            answer = " ".join(f"{seed >> shift & 0xFF:02x}" for shift in (0, 8, 16, 24))
        return self.tokenizer.encode(answer) if isinstance(answer, str) else list(answer)

    def _until_stop(
        self, wanted: Sequence[int], params: Mapping[str, Any]
    ) -> tuple[list[int], int, str, int | str | None]:
        """IDs up to the first stop, the characters to cut, the finish and its reason."""
        eos = -1 if params.get("ignore_eos") else self.tokenizer.eos_token_id
        stop_ids = set(params.get("stop_token_ids") or ())
        stops = params.get("stop") or ()
        stops = [stops] if isinstance(stops, str) else stops
        for count, token in enumerate(wanted, start=1):
            if token == eos:
                return list(wanted[:count]), 0, "stop", None
            if token in stop_ids:
                return list(wanted[:count]), 0, "stop", token
            if stops:
                text = self.tokenizer.decode(wanted[:count], skip_special_tokens=True)
                hit = next((stop for stop in stops if stop in text), None)
                if hit is not None:
                    return list(wanted[:count]), len(text) - text.index(hit), "stop", hit
        return list(wanted), 0, "length", None

    def _logprobs(
        self, prompt: Sequence[int], ids: Sequence[int], params: Mapping[str, Any]
    ) -> list[float]:
        crc = zlib.crc32(
            np.asarray(prompt, dtype="<i4").tobytes(), zlib.crc32(self.version.encode())
        )
        scale = max(float(params.get("temperature", 1.0)), 0.1) if self._processed else 1.0
        logprobs = []
        for token in ids:
            crc = zlib.crc32(int(token).to_bytes(4, "little"), crc)
            logprobs.append(-(0.05 + crc % 10_000 / 2_500) / scale)
        return logprobs
