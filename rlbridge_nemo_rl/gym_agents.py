"""NeMo-RL's own Gym path, made to survive: its actor with two methods of ours.

In this path Gym's agents roll out against NeMo-RL's vLLM server, and one failed `/run`, one
history that isn't contiguous or one prompt that is too long ends the batch. Here each of these
costs one rollout: it comes back without a generated message, so that `validity.settle` masks it,
and with the reason in its result. Runs in NeMo-RL's environment for Gym, where of rlbridge only
what needs numpy is imported.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from nemo_rl.environments.nemo_gym import NemoGym

from rlbridge.contracts import wire
from rlbridge.contracts.rollout import Rollout
from rlbridge.errors import ContractError
from rlbridge_nemo_rl.gym_calls import GATEWAY, Calls
from rlbridge_nemo_rl.sequences import UNTRAINED_TOKENS, contiguous

WHY_INVALID = "rlbridge_invalid"
"""Key of a result: why its rollout has no reward, or none that may be trained on."""

_Plain: Any = NemoGym.__ray_metadata__.modified_class


class _TolerantGym(_Plain):  # type: ignore[misc,unused-ignore]
    """`NemoGym` without its asserts on what agents and engines do."""

    async def run_rollouts(
        self, nemo_gym_examples: list[dict[str, Any]], tokenizer: Any, timer_prefix: str
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """As NeMo-RL's, one result a row in the rows' order; never raises for one of them."""
        found: dict[int, dict[str, Any]] = {}
        reasons: list[str] = []
        calls = Calls(self.cfg.get(GATEWAY))
        tasks = self.rch.run_examples(
            examples=[calls.in_session(row) for row in nemo_gym_examples],
            head_server_config=self.head_server_config,
        )
        for task in tasks:
            try:
                row, result = await task
            # An agent's failure is an exception of Gym's client, of whatever kind.
            except Exception as error:  # noqa: BLE001
                reasons.append(f"{type(error).__name__}: {error}")
                continue
            found[row["_rowidx"]] = self._read(result, tokenizer, await calls.of(row))
        await calls.forget()
        why = "; ".join(dict.fromkeys(reasons)) or "Gym gave no result"
        results = [
            found.get(number) or {"full_result": {WHY_INVALID: why}, "message_log": []}
            for number in range(len(nemo_gym_examples))
        ]
        complete(results, nemo_gym_examples, tokenizer)
        invalid = sum(WHY_INVALID in result["full_result"] for result in results)
        return results, {"gym/valid": float(len(results) - invalid), "gym/invalid": float(invalid)}

    def _read(self, result: Any, tokenizer: Any, calls: Rollout | str | None) -> dict[str, Any]:
        """One agent's answer as NeMo-RL reads it, or the reason why it can't be trained on."""
        why = why_invalid(result) or (calls if isinstance(calls, str) else "")
        captured = calls if isinstance(calls, Rollout) else None
        try:
            mended = None if why else contiguous(result, captured)
        except ContractError as error:
            mended, why = None, str(error)
        if mended is None:
            plain = dict(result) if isinstance(result, Mapping) else {}
            full = plain | {WHY_INVALID: why or "the policy generated nothing"}
            return {"full_result": full, "message_log": []}
        read: dict[str, Any] = self._postprocess_nemo_gym_to_nemo_rl_result(mended, tokenizer)
        return read


TolerantGym = ray.remote(max_restarts=-1, max_task_retries=-1)(_TolerantGym)


def why_invalid(result: Any) -> str:
    """Why an agent's answer has no reward that may be trained on; empty if it has one."""
    if not isinstance(result, Mapping) or not isinstance(result.get(wire.RESPONSE), Mapping):
        return f"the agent's answer is no result: {str(result)[:200]}"
    reward = result.get(wire.REWARD)
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        return f"$.reward is {reward!r}, not a finite number"
    if result.get(wire.FAILURE_CLASS):
        return f"the environment reports a failure: {result[wire.FAILURE_CLASS]}"
    if result.get(wire.MASK_SAMPLE):
        return "the environment asks to mask this sample"
    return ""


def complete(
    results: list[dict[str, Any]], rows: Sequence[Mapping[str, Any]], tokenizer: Any
) -> None:
    """Give results without a generation what NeMo-RL needs of each: a prompt and a number.

    The prompt is that of another rollout of the same row, for NeMo-RL groups by its tokens, or
    else the template's rendering. The number is the mean of the valid rewards, so that NeMo-RL's
    own figures don't move; `settle` sees that no message was generated and masks the row.
    """
    valid = [
        float(result["full_result"][wire.REWARD])
        for result in results
        if WHY_INVALID not in result["full_result"]
    ]
    filler = sum(valid) / len(valid) if valid else 0.0
    prompts = {
        _key(row): result["input_message_log"]
        for row, result in zip(rows, results, strict=True)
        if result["message_log"]
    }
    for row, result in zip(rows, results, strict=True):
        full = result["full_result"]
        full.setdefault(UNTRAINED_TOKENS, 0)
        if result["message_log"]:
            continue
        prompt = prompts.get(_key(row)) or [_prompt(row, tokenizer)]
        result["message_log"] = [dict(message) for message in prompt]
        result["input_message_log"] = result["message_log"][:1]
        full[wire.REWARD] = filler


def _key(row: Mapping[str, Any]) -> str:
    return str(row[wire.RESPONSES_CREATE_PARAMS].get("input"))


def _prompt(row: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    given = row[wire.RESPONSES_CREATE_PARAMS].get("input")
    text = given if isinstance(given, str) else str(given)
    token_ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids or [0])
    return {"role": "user", "content": "", "token_ids": token_ids}
