"""Tokens that a client brings along, on messages or as NeMo-RL's prefix. Refuses half of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlbridge.contracts import wire
from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import PromptSpan, SampledSpan, as_logprobs, as_token_ids
from rlbridge.errors import ContractError
from rlbridge.gateway.calls import Call
from rlbridge.gateway.errors import ApiError

REQUIRED_PREFIX = "required_prefix_token_ids"
# So many last tokens are compared where a whole prompt would cost too much.
_TAIL = 64


@dataclass(frozen=True, slots=True)
class Given:
    """Tokens that a client brought along.

    Attributes:
        index: of the message they end with, the last assistant message that has any.
        prompt_ids: as JSON gave them, not looked at yet: a long list costs more than the rest.
        sampled_ids: likewise; empty where the client sent prompt and answer in one.
        logprobs: of `sampled_ids`, likewise.
    """

    index: int
    prompt_ids: Sequence[int]
    sampled_ids: Sequence[int]
    logprobs: Sequence[float]

    def are_of(self, call: Call) -> bool:
        """Whether they are the tokens of this call."""
        ids = self.sampled_ids or self.prompt_ids[-_TAIL:]
        mine = call.generation[-1].token_ids[-len(ids) :]
        if len(self.prompt_ids) + len(self.sampled_ids) != call.length:
            return False
        return bool(list(ids[-len(mine) :]) == mine.tolist())

    def echo(self) -> tuple[int, int, bytes]:
        """What an answer of ours is found by, see `rlbridge.gateway.store.echo_of`.

        Raises:
            ApiError: IDs that are none.
        """
        try:
            sampled = as_token_ids(self.sampled_ids)
        except ContractError as error:
            raise ApiError(str(error), param=f"messages[{self.index}]") from error
        return len(self.prompt_ids), len(sampled), sampled.tobytes()

    def turn(self) -> Turn:
        """The call they are of.

        Raises:
            ApiError: they break the contract.
        """
        name = f"$.messages[{self.index}]" if self.sampled_ids else REQUIRED_PREFIX
        try:
            if self.sampled_ids:
                sampled = SampledSpan(as_token_ids(self.sampled_ids), as_logprobs(self.logprobs))
                return Turn(PromptSpan(as_token_ids(self.prompt_ids)), (sampled,))
            ids = as_token_ids(self.prompt_ids)
            # Nobody said which of them were sampled; the last one was.
            unknown = SampledSpan(ids[-1:], as_logprobs([None]))
            return Turn(PromptSpan(ids[:-1]), (unknown,))
        except ContractError as error:
            raise ApiError(f"{name}: {error}", param=name) from error


def given_tokens(
    body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], first: int = 0
) -> Given | None:
    """Tokens that a client brought along: on messages, or as NeMo-RL's prefix.

    Args:
        body: the request.
        messages: its messages from number `first` on; those before bring none.
        first: see there.

    Raises:
        ApiError: they are no lists.
    """
    required = body.get(REQUIRED_PREFIX)
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.get("role") != "assistant":
            continue
        if required:
            return Given(first + index, _list(required), (), ())
        sampled = message.get(wire.GENERATION_TOKEN_IDS)
        if sampled:
            prompt = _list(message.get(wire.PROMPT_TOKEN_IDS))
            return Given(
                first + index, prompt, _list(sampled), _list(message.get(wire.GENERATION_LOG_PROBS))
            )
    return None


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ApiError("token fields are lists of numbers, all of them or none", param="messages")
    return value
