"""Training sequences as verl's `AgentLoopOutput`s: the same tokens, masks and logprobs.

verl has no missing logprob: a token without one gets 0.0 here, next to the mask that keeps it out
of the loss. It has no owner of a token either: `extra_fields["parts"]` holds, for each sampled
part of the response, where it begins and ends, its turn, and the weights that sampled it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from rlbridge.contracts.sequence import TrainingSequence


def outputs_of(
    sequences: Iterable[TrainingSequence],
    *,
    response_length: int,
    num_turns: int,
    metrics: AgentLoopMetrics,
) -> list[AgentLoopOutput]:
    """One output a sequence; verl's V1 trainer takes several a rollout.

    Args:
        sequences: of one rollout, as `rlbridge.onpolicy.build` gives them.
        response_length: verl's limit in tokens, from the first sampled one on; what lies behind
            it is cut off, and counted in `extra_fields["cut_tokens"]`.
        num_turns: messages of the conversation, for verl's metrics.
        metrics: of the rollout; on each output.

    Returns:
        Outputs with at least one trained token, in the order of the sequences. verl takes the
        reward of the last for the whole rollout.
    """
    outputs = []
    for sequence in sequences:
        trained = _output(sequence, response_length)
        if any(trained["response_mask"]):
            outputs.append(
                AgentLoopOutput(**trained, num_turns=num_turns, metrics=metrics.model_copy())
            )
    return outputs


def _output(sequence: TrainingSequence, response_length: int) -> dict[str, Any]:
    """The fields of an `AgentLoopOutput` that a sequence fills."""
    at = sequence.prompt_length
    stop = min(len(sequence), at + response_length)
    logprobs = np.where(np.isnan(sequence.logprobs[at:stop]), 0.0, sequence.logprobs[at:stop])
    return {
        "prompt_ids": sequence.token_ids[:at].tolist(),
        "response_ids": sequence.token_ids[at:stop].tolist(),
        "response_mask": sequence.mask[at:stop].astype(int).tolist(),
        "response_logprobs": logprobs.tolist(),
        "extra_fields": {
            "turn_scores": [],
            "tool_rewards": [],
            "cut_tokens": int(sequence.mask[stop:].sum()),
            "parts": [
                [part.start - at, min(part.stop, stop) - at, part.turn, part.policy_version]
                for part in sequence.parts
                if part.start < stop
            ],
            **_step_range(sequence),
        },
    }


def _step_range(sequence: TrainingSequence) -> dict[str, Any]:
    """The first and last policy version that verl's off-policy accounting asks for."""
    known = [part.policy_version for part in sequence.parts if part.policy_version is not None]
    versions = [int(version) for version in known]
    low, high = (min(versions), max(versions)) if versions else (None, None)
    return {"min_global_steps": low, "max_global_steps": high}
