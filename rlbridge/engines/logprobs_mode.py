"""What an engine's logprobs are of: the model's distribution, or the one that was sampled.

Found by asking for the same place at two temperatures. Refuses logits for logprobs.
"""

from typing import Any, Final

from rlbridge.contracts import wire
from rlbridge.contracts.tokens import LogprobsMode
from rlbridge.engines.served import MESSAGES, PROMPTS, Server
from rlbridge.engines.wires import Spoken
from rlbridge.errors import ConfigError, EngineError

Json = dict[str, Any]
# Two distributions that sharpen and flatten; where logprobs know the temperature they differ.
_TEMPERATURES: Final = (0.5, 2.0)
_CERTAIN: Final = -1e-3
_SAME: Final = 0.02


async def logprobs_mode(server: Server, spoken: Spoken) -> LogprobsMode | None:
    """Whether the likeliest token's logprob knows the temperature; None where all are certain.

    Raises:
        ConfigError: they are logits.
    """
    for prompt in PROMPTS:
        low, high = [
            await _best_logprob(server, spoken, prompt, temperature)
            for temperature in _TEMPERATURES
        ]
        if low is None or high is None:
            return None
        if high > 0 or low > 0:
            raise ConfigError(
                f"{server.http.root} reports logits for logprobs; start it with --logprobs-mode "
                "processed_logprobs or raw_logprobs"
            )
        if min(low, high) > _CERTAIN:
            continue
        return LogprobsMode.RAW if abs(low - high) < _SAME else LogprobsMode.PROCESSED
    return None


async def _best_logprob(
    server: Server, spoken: Spoken, prompt: list[int], temperature: float
) -> float | None:
    """The largest logprob in the first place after `prompt`."""
    # Two: chat and generate put the sampled token first and cut the rest.
    params: Json = {"max_tokens": 1, "temperature": temperature, "logprobs": 2}
    body: Json = {"model": server.model, **params}
    if spoken.info.wire == "generate":
        body = {"model": server.model, "token_ids": prompt, "sampling_params": params}
    elif spoken.info.wire == "completions":
        body["prompt"] = prompt
    else:
        body |= {
            "messages": MESSAGES,
            "kv_transfer_params": {wire.PROMPT_TOKEN_IDS: prompt},
            "logprobs": True,
            "top_logprobs": 2,
        }
    try:
        reply = await server.http.post(spoken.path, body)
        logprobs = reply["choices"][0]["logprobs"]
        if "content" in logprobs:
            entry = logprobs["content"][0]
            values = [entry["logprob"], *(top["logprob"] for top in entry["top_logprobs"])]
        else:
            values = [*logprobs["top_logprobs"][0].values()]
        return float(max(values))
    except (EngineError, LookupError, TypeError, ValueError):
        return None
