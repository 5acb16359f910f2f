"""Probes a Gym server with real rows: what it accepts, how fast, how steadily, how it refuses."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlbridge.contracts.reward import FailureClass, Reward
from rlbridge.contracts.wire import RESPONSE, RESPONSES_CREATE_PARAMS
from rlbridge.gym.bodies import unknown_params_of
from rlbridge.gym.client import GymClient

Row = dict[str, Any]
PROBE_TEXT = "I don't know."


@dataclass(frozen=True, slots=True)
class RowReport:
    """What became of one row.

    Attributes:
        index: its place among the rows, from 0.
        ok: the server judged it, twice and alike.
        reward: the first verdict, or None.
        deterministic: the same verdict twice; None if there were not two.
        latency_s: of the first verdict.
        problem: in words, empty if there is none.
    """

    index: int
    ok: bool
    reward: float | None
    deterministic: bool | None
    latency_s: float
    problem: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the probe found.

    Attributes:
        url: the server.
        rows: one report a row.
        latency_p50_s: median of the rows' latencies.
        latency_max_s: the slowest.
        bad_rows: what the server does with rows that are wrong on purpose, by kind.
        warnings: what isn't an error but will be regretted.
    """

    url: str
    rows: list[RowReport]
    latency_p50_s: float
    latency_max_s: float
    bad_rows: dict[str, str]
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every row was judged, and twice alike."""
        return all(row.ok for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"ok": self.ok, **asdict(self)}


async def check(gym: GymClient, rows: Sequence[Row]) -> CheckReport:
    """Probe the server at `gym`'s URL with `rows`.

    A row's own `response`, if it has one, is what gets judged; otherwise a text that knows
    nothing. `gym` should neither share nor cache (`deterministic: false`).

    Raises:
        GymError: nobody answers at all.
    """
    await gym.check_alive()
    pairs = [(row, row.get(RESPONSE) or PROBE_TEXT) for row in rows]
    first = await gym.verify_batch(pairs)
    second = await gym.verify_batch(pairs)
    reports = [
        _row_report(index, once, again)
        for index, (once, again) in enumerate(zip(first, second, strict=True))
    ]
    latencies = [report.latency_s for report in reports]
    bad = await _bad_rows(gym, rows[0])
    return CheckReport(
        gym.config.url,
        reports,
        statistics.median(latencies),
        max(latencies),
        bad,
        _warnings(rows, reports, bad),
    )


def _row_report(index: int, once: Reward, again: Reward) -> RowReport:
    if not once.valid:
        problem = f"{once.failure}: {once.detail}"
        return RowReport(index, False, None, None, once.latency_s, problem)
    if not again.valid:
        problem = f"the second time: {again.failure}: {again.detail}"
        return RowReport(index, False, once.value, None, once.latency_s, problem)
    same = once == again
    problem = "" if same else f"two verdicts: {once.value} and {again.value}"
    return RowReport(index, same, once.value, same, once.latency_s, problem)


async def _bad_rows(gym: GymClient, row: Row) -> dict[str, str]:
    """What the server does with wrong rows: "refused (422)" is right, a reward is a trap."""
    params = row.get(RESPONSES_CREATE_PARAMS)
    known = dict(params) if isinstance(params, Mapping) else {}
    bare = {RESPONSES_CREATE_PARAMS: known}
    wrong: dict[str, Row] = {
        "without responses_create_params": {k: row[k] for k in row if k not in bare},
        "without the verifier's fields": bare,
        "with an unknown parameter": {**row, RESPONSES_CREATE_PARAMS: {**known, "rlbridge": 1}},
    }
    verdicts = {}
    for name, bad in wrong.items():
        reward = await gym.verify(bad, row.get(RESPONSE) or PROBE_TEXT)
        if reward.valid:
            verdicts[name] = f"judged: reward {reward.value:g}"
        elif reward.failure is FailureClass.BAD_ROW:
            verdicts[name] = f"refused ({reward.status})"
        else:
            verdicts[name] = f"neither judged nor refused: {reward.failure} ({reward.status})"
    return verdicts


def _warnings(
    rows: Sequence[Row], reports: Sequence[RowReport], bad: Mapping[str, str]
) -> list[str]:
    warnings = []
    if any(report.deterministic is False for report in reports):
        warnings.append(
            "the same response got two verdicts; set gym.deterministic: false, or one of them "
            "is shared by all who ask"
        )
    if bad["without the verifier's fields"].startswith("judged"):
        warnings.append(
            "a row without the verifier's fields gets a reward: a wrong row will look like a "
            "wrong answer"
        )
    unknown = sorted({name for row in rows for name in unknown_params_of(row)})
    if unknown:
        warnings.append(
            f"responses_create_params holds what NeMo Gym doesn't know: {', '.join(unknown)}; "
            "set gym.unknown_params: drop to leave it out"
        )
    return warnings
