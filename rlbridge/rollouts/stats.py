"""Figures of rollout files in one pass: rewards, environments, prompts, pass@k, lengths, failures.

Keeps some 40 bytes a row, whatever the rows hold. A row without a valid reward is counted with
its reason and is no zero in any figure.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from rlbridge.contracts import wire
from rlbridge.transforms.conversation import output_of, prompt_of, reward_of, why_invalid
from rlbridge.transforms.messages import Style
from rlbridge.transforms.reading import Line, Row
from rlbridge.transforms.rejects import BadRowError
from rlbridge.transforms.spool import digest

Floats = npt.NDArray[np.float64]
_STYLE: Final = Style(reasoning="drop", arguments="string")
_QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(slots=True)
class Environment:
    """Figures of one environment (`agent_ref.name`).

    Attributes:
        rows: rollouts.
        invalid: rollouts without a valid reward.
        mean: mean of the valid rewards; None without any.
    """

    rows: int
    invalid: int
    mean: float | None


@dataclass(slots=True)
class Stats:
    """Figures of rollouts.

    Attributes:
        rows: rollouts read.
        rewards: float64 [v], the valid rewards.
        invalid: rollouts without a valid reward, by reason.
        environments: by name, most rollouts first.
        group_sizes: rollouts with a valid reward a prompt: size to number of prompts.
        group_means: float64 [prompts], mean reward of each prompt.
        all_equal: prompts with two or more valid rewards that are all equal: no signal in GRPO.
        all_passed: of those, the ones that all passed.
        all_failed: of those, the ones that all failed.
        pass_reward: what counts as passed.
        pass_at: k to pass@k, of the prompts that have k valid rewards or more.
        tokens: float64, sampled tokens a rollout, where they are known.
        answer_chars: float64 [rows], characters the policy wrote a rollout.
        turns: float64 [rows], calls or assistant items a rollout.
        tool_calls: calls of tools by name.
        truncated: rollouts whose answer was cut at the token limit.
        with_token_ids: rollouts that carry token fields.
        without_output: rows that hold no rollout.
    """

    rows: int = 0
    rewards: Floats = field(default_factory=lambda: np.empty(0))
    invalid: Counter[str] = field(default_factory=Counter)
    environments: dict[str, Environment] = field(default_factory=dict)
    group_sizes: dict[int, int] = field(default_factory=dict)
    group_means: Floats = field(default_factory=lambda: np.empty(0))
    all_equal: int = 0
    all_passed: int = 0
    all_failed: int = 0
    pass_reward: float = 0.5
    pass_at: dict[int, float] = field(default_factory=dict)
    tokens: Floats = field(default_factory=lambda: np.empty(0))
    answer_chars: Floats = field(default_factory=lambda: np.empty(0))
    turns: Floats = field(default_factory=lambda: np.empty(0))
    tool_calls: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    with_token_ids: int = 0
    without_output: int = 0

    @property
    def prompts(self) -> int:
        """Prompts with a valid reward."""
        return len(self.group_means)

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON, columns as quantiles."""
        return {
            "rows": self.rows,
            "valid": len(self.rewards),
            "invalid": dict(self.invalid.most_common()),
            "reward": quantiles(self.rewards),
            "environments": {
                name: {"rows": e.rows, "invalid": e.invalid, "mean": e.mean}
                for name, e in self.environments.items()
            },
            "prompts": self.prompts,
            "group_sizes": {str(size): n for size, n in self.group_sizes.items()},
            "all_equal": self.all_equal,
            "all_passed": self.all_passed,
            "all_failed": self.all_failed,
            "pass_reward": self.pass_reward,
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
            "tokens": quantiles(self.tokens),
            "answer_chars": quantiles(self.answer_chars),
            "turns": quantiles(self.turns),
            "tool_calls": dict(self.tool_calls.most_common()),
            "truncated": self.truncated,
            "with_token_ids": self.with_token_ids,
            "without_output": self.without_output,
        }


def stats_of(lines: Iterable[Line], *, pass_reward: float = 0.5) -> Stats:
    """Read rollouts once and count.

    Args:
        lines: from a `Reader`.
        pass_reward: a reward of at least this passed.
    """
    found = Stats(pass_reward=pass_reward)
    counted = _Columns()
    for line in lines:
        found.rows += 1
        counted.add(line.row, found)
    rewards = np.frombuffer(counted.reward, dtype=np.float64)
    found.rewards = rewards
    _by_environment(found, counted, rewards)
    _by_prompt(found, np.frombuffer(counted.prompt, dtype=np.uint64), rewards)
    found.tokens = np.frombuffer(counted.tokens, dtype=np.float64)
    found.answer_chars = np.frombuffer(counted.chars, dtype=np.float64)
    found.turns = np.frombuffer(counted.turns, dtype=np.float64)
    return found


def pass_at_k(n: npt.NDArray[np.int64], passed: npt.NDArray[np.int64], k: int) -> float:
    """Unbiased estimate of the probability that one of k samples passes, mean over prompts.

    1 - C(n-c, k) / C(n, k), as a product (Chen et al. 2021, arXiv:2107.03374, eq. 1). Taking
    the best of the first k instead is noisy, and 1 - (1 - c/n)^k is biased.

    Args:
        n: int [prompts], samples of each prompt, all of them k or more.
        passed: int [prompts], how many passed.
        k: samples one may take.
    """
    failed = (n - passed).astype(np.float64)
    missed = np.ones(len(n))
    for i in range(k):
        missed *= np.maximum(failed - i, 0.0) / (n - i)
    return float(np.mean(1.0 - missed))


def quantiles(values: Floats) -> dict[str, float] | None:
    """Mean, least, greatest and quantiles; None of nothing."""
    if not len(values):
        return None
    found = np.quantile(values, _QUANTILES).tolist()
    names = ("min", "p10", "p25", "p50", "p75", "p90", "p99", "max")
    return {"mean": float(values.mean())} | dict(zip(names, found, strict=True))


class _Columns:
    """What is kept of each row."""

    def __init__(self) -> None:
        self.reward, self.prompt = array("d"), array("Q")
        self.environment, self.rewarded_environment = array("l"), array("l")
        self.tokens, self.chars, self.turns = array("d"), array("d"), array("d")
        self.names: dict[str, int] = {}

    def add(self, row: Row, found: Stats) -> None:
        agent = row.get(wire.AGENT_REF)
        name = str(agent.get("name")) if isinstance(agent, Mapping) else "(no agent_ref)"
        environment = self.names.setdefault(name, len(self.names))
        self.environment.append(environment)
        reward = reward_of(row)
        if reward is None:
            found.invalid[why_invalid(row)] += 1
        else:
            self.reward.append(reward)
            self.prompt.append(_prompt_key(row))
            self.rewarded_environment.append(environment)
        try:
            output = output_of(row)
        except BadRowError:
            found.without_output += 1
            return
        self._lengths(row, output, found)

    def _lengths(self, row: Row, output: list[Any], found: Stats) -> None:
        chars = turns = tokens = 0
        for item in output:
            if not isinstance(item, Mapping):
                continue
            sampled = item.get(wire.GENERATION_TOKEN_IDS)
            if sampled:
                tokens += len(sampled)
            kind = item.get("type")
            if kind == "function_call":
                found.tool_calls[str(item.get("name"))] += 1
                chars += len(str(item.get("arguments") or ""))
            elif item.get("role") == "assistant":
                turns += 1
                chars += _chars(item.get("content"))
            elif kind == "reasoning":
                chars += _chars(item.get("summary")) + _chars(item.get("content"))
        response = row.get(wire.RESPONSE)
        response = response if isinstance(response, Mapping) else {}
        found.with_token_ids += tokens > 0
        usage = response.get("usage")
        if not tokens and isinstance(usage, Mapping):
            tokens = usage.get("output_tokens") or 0
        if tokens:
            self.tokens.append(tokens)
        why = response.get("incomplete_details")
        found.truncated += isinstance(why, Mapping) and why.get("reason") == "max_output_tokens"
        self.chars.append(chars)
        self.turns.append(turns)


def _chars(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else ()
    return sum(len(part.get("text") or "") for part in parts if isinstance(part, Mapping))


def _prompt_key(row: Row) -> int:
    """The prompt's hash; the task's index where a row's input is empty (agents that make it)."""
    try:
        return digest(orjson.dumps(prompt_of(row, _STYLE)))
    except BadRowError:
        task = row.get(wire.TASK_INDEX, row.get("task_idx"))
        return digest(orjson.dumps(["task", task], default=str))


def _by_environment(found: Stats, counted: _Columns, rewards: Floats) -> None:
    number = len(counted.names)
    rows = np.bincount(np.frombuffer(counted.environment, dtype=np.int64), minlength=number)
    valid = np.frombuffer(counted.rewarded_environment, dtype=np.int64)
    counts = np.bincount(valid, minlength=number)
    sums = np.bincount(valid, weights=rewards, minlength=number)
    made = {
        name: Environment(
            int(rows[i]),
            int(rows[i] - counts[i]),
            float(sums[i] / counts[i]) if counts[i] else None,
        )
        for name, i in counted.names.items()
    }
    found.environments = dict(sorted(made.items(), key=lambda pair: -pair[1].rows))


def _by_prompt(found: Stats, prompts: npt.NDArray[np.uint64], rewards: Floats) -> None:
    if not len(prompts):
        return
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    found.group_means = np.bincount(group, weights=rewards) / sizes
    passed = np.bincount(group, weights=rewards >= found.pass_reward).astype(np.int64)
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, group, rewards)
    np.maximum.at(high, group, rewards)
    equal = (low == high) & (sizes > 1)
    found.all_equal = int(equal.sum())
    found.all_passed = int((equal & (passed == sizes)).sum())
    found.all_failed = int((equal & (passed == 0)).sum())
    distinct, counts = np.unique(sizes, return_counts=True)
    found.group_sizes = dict(zip(distinct.tolist(), counts.tolist(), strict=True))
    k = 1
    while k <= int(sizes.max()):
        enough = sizes >= k
        found.pass_at[k] = pass_at_k(sizes[enough], passed[enough], k)
        k *= 2
