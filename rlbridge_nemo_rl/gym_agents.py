"""NeMo-RL's own Gym path, made to survive: its actor, with what Gym gives it mended first.

In this path Gym's agents roll out against NeMo-RL's vLLM server, and one failed `/run`, one
history that isn't contiguous or one prompt that is too long ends the batch. Here each of these
costs one rollout: it comes back without a generated message, so that `validity.settle` masks it,
and with the reason in its result. Runs in NeMo-RL's environment for Gym, where of rlbridge only
what needs numpy, orjson, psutil and pydantic is imported, as Gym itself does.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from nemo_rl.environments.nemo_gym import NemoGym

from rlbridge.contracts import wire
from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward
from rlbridge.contracts.rollout import Rollout
from rlbridge.errors import ContractError, RunError
from rlbridge.launch.processes import end
from rlbridge.ledger import RewardLedger
from rlbridge_nemo_rl import gym_servers, restarts, versions
from rlbridge_nemo_rl.agent_rewards import LEDGER, RolloutRewards, reward_of
from rlbridge_nemo_rl.gym_calls import GATEWAY, Calls
from rlbridge_nemo_rl.sequences import EVERY_SEQUENCE, OTHERS, UNTRAINED_TOKENS, contiguous

WHY_INVALID = "rlbridge_invalid"
"""Key of a result: why its rollout has no reward, or none that may be trained on."""
MASKED = "the environment asks to mask this sample"

_Plain: Any = NemoGym.__ray_metadata__.modified_class


@dataclass(frozen=True, slots=True)
class Played:
    """One rollout that an agent made.

    Attributes:
        number: its row in the batch.
        reward: what the agent's answer says.
        result: that answer; empty if there was none.
        calls: what the gateway captured, or why it can't be trained on; None without a gateway,
            or where the agent dropped the session.
    """

    number: int
    reward: Reward
    result: Any
    calls: Rollout | str | None = None


class _TolerantGym(_Plain):  # type: ignore[misc,unused-ignore]
    """`NemoGym` without its asserts on what agents and engines do."""

    def __init__(self, cfg: Any) -> None:
        gym_servers.keep_head_in()
        super().__init__(gym_servers.on_loopback(cfg))
        folder = cfg.get(LEDGER)
        self._folder = Path(folder) if folder else None
        self._ledger = RewardLedger(self._folder) if self._folder else None
        self._step = restarts.remembered(self._folder)[0] if self._folder else 1
        self._ended = False

    def shutdown(self) -> None:
        """End Gym, and its servers where it ends only the shells that it started them by."""
        self._ended = True
        started = gym_servers.processes()
        try:
            super().shutdown()
        finally:
            end(started)

    def set_step(self, step: int) -> None:
        """Say which training step rewards are asked for from now on; NeMo-RL doesn't."""
        self._step = step
        if self._folder:
            restarts.keep_step(self._folder, step)

    def _see_that_gym_runs(self) -> None:
        """Start Gym again in an actor that Ray has restarted, which it does by `__init__` alone.

        Raises:
            RunError: the head hands an actor its tokenizer once, and it is gone.
        """
        if getattr(self, "rch", None) is not None:
            return
        if hasattr(self, "set_tokenizer"):
            raise RunError("NeMo-RL's Gym actor died, and nobody sets up another; resume the run")
        self._spinup()

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The batch as it is; this path's figures come with each rollout's own."""
        return batch, {}

    async def _play(self, rows: Sequence[Mapping[str, Any]]) -> AsyncIterator[Played]:
        """The rollouts in order of completion; those that failed come last."""
        self._see_that_gym_runs()
        waiting = {row["_rowidx"]: number for number, row in enumerate(rows)}
        reasons: dict[str, None] = {}
        calls = Calls(self.cfg.get(GATEWAY))
        tasks = self.rch.run_examples(
            examples=[calls.in_session(row) for row in rows],
            head_server_config=None,  # Gym's own config says where it listens
        )
        try:
            for task in tasks:
                try:
                    row, result = await task
                # An agent's failure is an exception of Gym's client, of whatever kind, that
                # doesn't say whose it is.
                except Exception as error:  # noqa: BLE001
                    reasons[f"{type(error).__name__}: {error}"] = None
                    continue
                number = waiting.pop(row["_rowidx"])
                yield Played(number, reward_of(result), result, await calls.of(row))
        finally:
            await calls.forget()
        why = "; ".join(reasons) or "Gym gave no result"
        for number in waiting.values():
            yield Played(number, InvalidReward(FailureClass.SERVER_ERROR, why), {})

    async def _results(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, rewards: RolloutRewards
    ) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """Each rollout's number and result, as it comes; its reward is recorded.

        Raises:
            RunError: training ended meanwhile, as async GRPO does; nobody failed at these.
        """
        async for played in self._play(rows):
            if self._ended:
                raise RunError("training ended while agents played")
            reward, result = self._read(played, rows[played.number], tokenizer)
            rewards.note(played.number, reward)
            yield played.number, result

    def _read(
        self, played: Played, row: Mapping[str, Any], tokenizer: Any
    ) -> tuple[Reward, dict[str, Any]]:
        """A rollout as NeMo-RL reads it, or the reason why it can't be trained on."""
        reward, calls = played.reward, played.calls
        if isinstance(reward, InvalidReward):
            return reward, _without_messages(played.result, reward.detail)
        if reward.mask_sample:
            return reward, _without_messages(played.result, MASKED)
        mended, why = None, "the policy generated nothing"
        try:
            if isinstance(calls, str):
                why = calls
            else:
                every = bool(self.cfg.get(EVERY_SEQUENCE))
                mended = contiguous(played.result, calls, every=every)
        except ContractError as error:
            why = str(error)
        if mended is None:
            why = f"a reward without tokens to train: {why}"
            untrained = InvalidReward(
                FailureClass.MALFORMED_BODY, why, None, reward.attempts, None, reward.latency_s
            )
            return untrained, _without_messages(played.result, why)
        read = versions.postprocessed(self, row, mended.result, tokenizer)
        if mended.others:
            read["message_log"][-1][OTHERS] = mended.others
        return reward, read


class _CollectingGym(_TolerantGym):
    """As NeMo-RL up to 0.7: the rollouts of a batch come together."""

    async def run_rollouts(
        self, nemo_gym_examples: list[dict[str, Any]], tokenizer: Any, timer_prefix: str
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """As NeMo-RL's, one result a row in the rows' order; never raises for one of them."""
        rewards = RolloutRewards(self._ledger, self._step, nemo_gym_examples)
        played = self._results(nemo_gym_examples, tokenizer, rewards)
        found = {number: result async for number, result in played}
        results = [found[number] for number in range(len(nemo_gym_examples))]
        complete(results, nemo_gym_examples, tokenizer)
        return results, rewards.metrics()


class _StreamingGym(_TolerantGym):
    """As NeMo-RL's head: rollouts come one by one."""

    async def run_rollouts(
        self,
        nemo_gym_examples: list[dict[str, Any]],
        timer_prefix: str,
        deduplicate_multimodal_data: bool = False,
    ) -> AsyncIterator[tuple[int, dict[str, Any], dict[str, float] | None]]:
        """As NeMo-RL's; never raises for one of them, and those to mask come last."""
        rewards = RolloutRewards(self._ledger, self._step, nemo_gym_examples)
        played = self._results(nemo_gym_examples, self._tokenizer, rewards)
        found: dict[int, dict[str, Any]] = {}
        last: list[int] = []
        async for number, result in played:
            found[number] = result
            if result["message_log"] and len(found) < len(nemo_gym_examples):
                yield nemo_gym_examples[number]["_rowidx"], result, None
            else:
                last.append(number)
        results = [found[number] for number in range(len(nemo_gym_examples))]
        complete(results, nemo_gym_examples, self._tokenizer)
        for number in last:
            figures = rewards.metrics() if number == last[-1] else None
            yield nemo_gym_examples[number]["_rowidx"], found[number], figures


_Gym = _StreamingGym if versions.streams(_Plain.run_rollouts) else _CollectingGym
TolerantGym = ray.remote(max_restarts=-1, max_task_retries=-1)(_Gym)


def _without_messages(result: Any, why: str) -> dict[str, Any]:
    plain = dict(result) if isinstance(result, Mapping) else {}
    return {"full_result": plain | {WHY_INVALID: why}, "message_log": []}


def complete(
    results: list[dict[str, Any]], rows: Sequence[Mapping[str, Any]], tokenizer: Any
) -> None:
    """Give results without a generation what NeMo-RL needs of each: a prompt and a number.

    The prompt is that of another rollout of the same row, for NeMo-RL groups by its tokens, or
    else the template's rendering. The number is the mean of the valid rewards, so that NeMo-RL's
    own figures don't move; `settle` sees that no message was generated and masks the row. Where
    nobody has a reward it is 0.0: v0.7.0 makes a histogram of these numbers before anybody sees
    them, which fails for NaN. `settle` makes the batch's rewards NaN then, and
    `registration` takes NeMo-RL's figures of them away.
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
        full.pop("reward_components", None)  # whose sum the head wants to be the reward


def _key(row: Mapping[str, Any]) -> str:
    return str(row[wire.RESPONSES_CREATE_PARAMS].get("input"))


def _prompt(row: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    given = row[wire.RESPONSES_CREATE_PARAMS].get("input")
    text = given if isinstance(given, str) else str(given)
    token_ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids or [0])
    return {"role": "user", "content": "", "token_ids": token_ids}
