"""Are these rollouts what they should be? Schema, fields by target format, token truth.

Every finding is counted by kind, with the first places it was seen. Errors are what would train
wrongly or stop a trainer; warnings are what a user may want to know.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from rlbridge.contracts import wire
from rlbridge.contracts.codecs import gym
from rlbridge.contracts.rollout import Rollout, Turn
from rlbridge.errors import ContractError
from rlbridge.transforms.conversation import output_of, reward_of, why_invalid
from rlbridge.transforms.harvest import Convert, SkippedRowError
from rlbridge.transforms.reading import Line, Row
from rlbridge.transforms.rejects import BadRowError

Severity = Literal["error", "warning"]

_PLACES_KEPT: Final = 3
_ITEMS: Final = {
    "message": ("role", "content"),
    "function_call": ("name", "arguments", "call_id"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


@dataclass(slots=True)
class Finding:
    """One kind of fault.

    Attributes:
        kind: its name.
        severity: `error` or `warning`.
        rows: how often it was found.
        places: `file:line: $.path: what` of the first ones.
    """

    kind: str
    severity: Severity
    rows: int = 0
    places: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Validation:
    """What was found.

    Attributes:
        rows: rows looked at.
        turns: calls with token fields.
        with_tokens: rows with token fields.
        usable: rows that each target format can use.
        findings: by kind.
        drift: turns that drifted by kind, where a model was given.
        drift_turns: turns that could drift; None where no model was given.
    """

    rows: int = 0
    turns: int = 0
    with_tokens: int = 0
    usable: Counter[str] = field(default_factory=Counter)
    findings: dict[str, Finding] = field(default_factory=dict)
    drift: Counter[str] = field(default_factory=Counter)
    drift_turns: int | None = None

    @property
    def errors(self) -> int:
        """Rows with an error, counted once a kind."""
        return sum(f.rows for f in self.findings.values() if f.severity == "error")

    def to_json(self) -> dict[str, Any]:
        """What was found as JSON."""
        return {
            "rows": self.rows,
            "turns": self.turns,
            "with_tokens": self.with_tokens,
            "usable": dict(self.usable),
            "errors": self.errors,
            "findings": [asdict(finding) for finding in self.findings.values()],
            "drift": dict(self.drift),
            "drift_turns": self.drift_turns,
        }

    def note(self, kind: str, severity: Severity, where: str, at: str, what: str) -> None:
        """Count a finding."""
        finding = self.findings.setdefault(kind, Finding(kind, severity))
        finding.rows += 1
        if len(finding.places) < _PLACES_KEPT:
            finding.places.append(f"{where}: {at}: {what.removeprefix(f'{at}: ')}")


def validate(
    lines: Iterable[Line],
    targets: Mapping[str, Convert],
    on_rollout: Callable[[Rollout], None] | None = None,
) -> Validation:
    """Look at every row.

    Args:
        lines: from a `Reader`.
        targets: the converter of each target format, by the format's name.
        on_rollout: called with the tokens of each row that carries any; measures drift.
    """
    found = Validation()
    seen: set[tuple[Path, int, int]] = set()
    for line in lines:
        found.rows += 1
        row, where = line.row, line.where
        _check_indices(found, line, where, seen)
        _check_reward(found, row, where)
        _check_items(found, row, where)
        for name, convert in targets.items():
            _try(found, name, convert, row, where)
        rollout = _check_tokens(found, row, where)
        if rollout is not None and on_rollout is not None:
            on_rollout(rollout)
    return found


def _check_indices(
    found: Validation, line: Line, where: str, seen: set[tuple[Path, int, int]]
) -> None:
    task, rollout = line.row.get(wire.TASK_INDEX), line.row.get(wire.ROLLOUT_INDEX)
    if task is None or rollout is None:
        return
    if not isinstance(task, int) or not isinstance(rollout, int):
        found.note("bad index", "error", where, f"$.{wire.TASK_INDEX}", "indices must be integers")
        return
    key = (line.path, task, rollout)
    if key in seen:
        what = f"task {task}, rollout {rollout} was in this file before"
        found.note("row twice", "error", where, f"$.{wire.ROLLOUT_INDEX}", what)
    seen.add(key)


def _check_reward(found: Validation, row: Row, where: str) -> None:
    if reward_of(row) is None:
        why = why_invalid(row)
        bad = why == "reward is no finite number"
        severity: Severity = "error" if bad else "warning"
        found.note(why.split(":")[0], severity, where, f"$.{wire.REWARD}", why)


def _check_items(found: Validation, row: Row, where: str) -> None:
    try:
        output = output_of(row)
    except BadRowError as error:
        found.note(error.kind, "error", where, error.at, str(error))
        return
    if wire.RESPONSE not in row:
        found.note("old form", "warning", where, "$.output", "the output is not in $.response")
    open_calls: set[Any] = set()
    for index, item in enumerate(output):
        at = f"$.response.output[{index}]"
        if not isinstance(item, Mapping):
            found.note("bad item", "error", where, at, f"a {type(item).__name__} is no item")
            continue
        kind = item.get("type", "message")
        wanted = _ITEMS.get(kind)
        if wanted is None:
            found.note("unknown item", "warning", where, f"{at}.type", f"{kind!r} has no chat form")
            continue
        lacking = [name for name in wanted if item.get(name) is None]
        if lacking:
            found.note(
                f"{kind} incomplete", "error", where, f"{at}.{lacking[0]}", "missing; Gym wants it"
            )
        if kind == "function_call":
            open_calls.add(item.get("call_id"))
        elif kind == "function_call_output" and item.get("call_id") not in open_calls:
            what = "the result of a call that isn't in this rollout"
            found.note("lone tool result", "warning", where, f"{at}.call_id", what)
    if not output:
        found.note("empty output", "warning", where, "$.response.output", "the policy said nothing")


def _try(found: Validation, name: str, convert: Convert, row: Row, where: str) -> None:
    try:
        convert(row)
        found.usable[name] += 1
    except BadRowError as error:
        found.note(f"not for {name}: {error.kind}", "error", where, error.at, str(error))
    except SkippedRowError as error:
        found.note(f"not for {name}: {error}", "warning", where, "$.response.output", str(error))


def _check_tokens(found: Validation, row: Row, where: str) -> Rollout | None:
    try:
        output = output_of(row)
        turns = gym.turns_from_response({"output": output})
    except BadRowError:
        return None
    except ContractError as error:
        at = str(error).split(":", 1)[0].split(" ", 1)[0]
        found.note("tokens broken", "error", where, at.replace("$.", "$.response.", 1) if
                   not at.startswith("$.response") else at, str(error))  # fmt: skip
        return None
    if not turns:
        return None
    found.with_tokens += 1
    found.turns += len(turns)
    _check_logprobs(found, turns, where)
    before = turns[0]
    for number, turn in enumerate(turns[1:], start=1):
        known, prompt = before.token_ids, turn.prompt.token_ids
        if len(prompt) < len(known) or not np.array_equal(prompt[: len(known)], known):
            what = "the prompt doesn't begin with what the engine had; NeMo-RL stops on this"
            found.note("not contiguous", "error", where, f"$.response.output, call {number}", what)
            break
        before = turn
    return Rollout(where, turns)


def _check_logprobs(found: Validation, turns: tuple[Turn, ...], where: str) -> None:
    logprobs = np.concatenate([turn.logprobs for turn in turns])
    at = f"$.response.output[].{wire.GENERATION_LOG_PROBS}"
    if bool(np.isnan(logprobs).any()):
        what = f"{int(np.isnan(logprobs).sum())} of {len(logprobs)} are missing; Gym drops them all"
        found.note("logprobs missing", "error", where, at, what)
    elif len(logprobs) > 1 and not bool(logprobs.any()):
        what = "all are 0.0, which is certainty: padding, or greedy sampling"
        found.note("logprobs all zero", "warning", where, at, what)
