"""Plain completions: a prompt as text or IDs, or several. Refuses what would hide what was sampled.

Between sessions' calls a text that begins with an earlier prompt and its answer goes on from
their tokens, so a client that glues text together stays on policy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rlbridge.gateway.chat import CompletionWriter, Wanted
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.outcome import Outcome
from rlbridge.onpolicy.tokenizer import ChatTokenizer

_REFUSED: Mapping[str, tuple[object, ...]] = {
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "prompt_logprobs": (None,),
    "prompt_embeds": (None,),
}


def prompts_of(body: Mapping[str, Any]) -> list[str | list[int]]:
    """The prompts of a request, each text or IDs.

    Raises:
        ApiError: none, mixed kinds, or an option this gateway has no answer to.
    """
    for name, harmless in _REFUSED.items():
        if name in body and body[name] not in harmless:
            raise ApiError(f"{name} isn't supported by this gateway", param=name)
    logprobs = body.get("logprobs")
    if logprobs is not None and not (isinstance(logprobs, int) and 0 <= logprobs <= 1):
        raise ApiError(
            "logprobs must be 0 or 1: the gateway keeps the logprob of the sampled token alone",
            param="logprobs",
        )
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        kinds = {type(part) for part in prompt}
        if kinds == {int}:
            return [prompt]
        if kinds == {str}:
            return list(prompt)
        if kinds == {list} and all(type(token) is int for part in prompt for token in part):
            return list(prompt)
    raise ApiError(
        "prompt must be a string, a list of token IDs, or a list of either", param="prompt"
    )


def completion_body(
    tokenizer: ChatTokenizer, outcomes: Sequence[Outcome], wanted: Wanted, *, name: str
) -> bytes:
    """The whole reply, the choices of all prompts in their order."""
    choices: list[dict[str, Any]] = []
    prompt = completion = 0
    for outcome in outcomes:
        choices += CompletionWriter(tokenizer, outcome, wanted).choices(len(choices))
        prompt += outcome.prompt_tokens
        completion += outcome.completion_tokens
    reply = {
        "id": f"cmpl-{name}",
        "object": "text_completion",
        "created": outcomes[0].created_s,
        "model": outcomes[0].model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
