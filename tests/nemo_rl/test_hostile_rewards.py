"""Servers that answer anything at all: a number somebody computed, or NaN and the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlbridge.testing import FaultKind, Faults, make_row
from tests.nemo_rl.test_environment import create

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("registered")]

# What a verifier says is its reward, and the class of what is wrong with that; None: nothing is.
ANSWERS: list[tuple[Any, str | None]] = [
    (0.25, None),
    (-3, None),
    (-0.0, None),
    (1e15, None),
    (float("nan"), "non_finite"),
    (float("inf"), "non_finite"),
    (float("-inf"), "non_finite"),
    (1e308, "non_finite"),  # infinite in NeMo-RL's float32
    (-1e20, "non_finite"),  # its square is
    (10**400, "non_finite"),
    (True, "missing_reward"),
    ("1.0", "missing_reward"),
    (None, "missing_reward"),
    ([1.0], "missing_reward"),
    ({"reward": 1.0}, "missing_reward"),
]
HARMLESS = {FaultKind.DROPPED_COOKIE, FaultKind.SWAPPED_COOKIE}  # to rows without sessions
LONG = "é" * 3_000_000


def step(env: Any, texts: list[str]) -> Any:
    import ray

    logs = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": t}] for t in texts]
    infos = [{"row": make_row("q"), "row_index": n, "split": "train"} for n in range(len(texts))]
    return ray.get(env.step.remote(logs, infos), timeout=60)


def test_a_reward_is_a_number_or_masked_with_the_reason(
    tmp_path: Path, gym: Callable[..., Any]
) -> None:
    server = gym(rewards=lambda body: {"reward": ANSWERS[int(_said(body))][0]})
    env = create(server.url, ledger=str(tmp_path))
    out = step(env, [str(number) for number in range(len(ANSWERS))])
    assert all(out.terminateds)
    for (answer, failure), reward, info in zip(ANSWERS, out.rewards, out.metadata, strict=True):
        if failure is None:
            assert float(reward) == pytest.approx(answer)
            assert info["verdict"]["reward"] == answer
        else:
            assert reward.isnan(), answer
            assert info["verdict"]["failure"] == failure, answer
            assert "$.reward" in info["verdict"]["detail"]
    lines = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.open()]
    assert {line["row"]: line.get("failure") for line in lines} == {
        number: failure for number, (_, failure) in enumerate(ANSWERS)
    }


def test_whatever_goes_wrong_on_the_wire_masks_and_says_why(gym: Callable[..., Any]) -> None:
    server = gym()
    env = create(server.url, verify_timeout_s=0.5, breaker_failures=1000, deterministic=False)
    for kind in set(FaultKind) - HARMLESS:
        server.behaviour.faults = Faults(rate=1.0, kinds=[kind])
        out = step(env, ["a", "b"])
        assert out.rewards.isnan().all(), kind
        assert all(out.terminateds), kind
        assert all(info["verdict"]["failure"] for info in out.metadata), kind
        assert all(info["verdict"]["detail"] for info in out.metadata), kind
    server.behaviour.faults = Faults()
    assert step(env, ["a", "b"]).rewards.tolist() == [1.0, 1.0]


def test_answers_and_replies_of_any_length_end_as_a_reward_or_a_reason(
    gym: Callable[..., Any],
) -> None:
    server = gym(
        rewards=lambda body: {"reward": 1.0, "logs": "x" * 40_000_000 * (_said(body) == "flood")}
    )
    out = step(create(server.url), [LONG, "", "\ud800", "flood"])
    assert out.rewards.tolist()[:3] == [1.0] * 3
    assert out.rewards[3].isnan()
    assert out.metadata[3]["verdict"]["failure"] == "malformed_body"
    assert "longer than" in out.metadata[3]["verdict"]["detail"]


def _said(body: dict[str, Any]) -> str:
    return str(body["response"]["output"][-1]["content"][0]["text"])
