"""Whatever a server may answer becomes a reward or a reason; properties by Hypothesis."""

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbridge.contracts.reward import FailureClass, InvalidReward, ValidReward
from rlbridge.gym.replies import Failure, Reply, read_reward, retry_after_s, server_words

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["reward", "reward_components", "mask_sample", "_ng_failure_class", "instance_config"]
OBJECTS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), JSON, max_size=6)


def reply(body: object, status: int = 200) -> Reply:
    return Reply(status, "application/json", json.dumps(body).encode())


def check(outcome: object) -> None:
    if isinstance(outcome, ValidReward):
        assert math.isfinite(outcome.value)
        assert all(math.isfinite(part) for part in outcome.components.values())
        assert pickle.loads(pickle.dumps(outcome)) == outcome  # noqa: S301 (our own)
    else:
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.invalid(1, 0.0), InvalidReward)
        assert len(outcome.detail) < 500


@given(JSON | OBJECTS)
def test_any_json_is_a_finite_reward_or_a_reason(body: object) -> None:
    check(read_reward(reply(body), 1, 0.0))


@given(st.binary(max_size=200), st.integers(100, 599), st.text(max_size=20))
def test_any_bytes_any_status_any_type_is_a_reward_or_a_reason(
    body: bytes, status: int, kind: str
) -> None:
    check(read_reward(Reply(status, kind, body), 1, 0.0))
    check(read_reward(Reply(status, "application/json", body), 1, 0.0))


@given(JSON, st.sampled_from([400, 404, 408, 422, 429, 500, 503]))
def test_any_error_body_has_words(body: object, status: int) -> None:
    outcome = read_reward(reply(body, status), 1, 0.0)
    assert isinstance(outcome, Failure)
    assert outcome.status == status


@pytest.mark.parametrize("depth", [500, 2000, 100_000])
def test_nesting_of_any_depth_is_survived(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for body in (nested, b'{"reward": ' + nested + b"}", b'{"detail": ' + nested + b"}"):
        check(read_reward(Reply(200, "application/json", body), 1, 0.0))
        check(read_reward(Reply(500, "application/json", body), 1, 0.0))


@pytest.mark.parametrize(
    ("literal", "failure"),
    [
        ("NaN", FailureClass.NON_FINITE),
        ("-Infinity", FailureClass.NON_FINITE),
        ("1e999", FailureClass.NON_FINITE),
        ("1" * 400, FailureClass.NON_FINITE),
        ("1e308", FailureClass.NON_FINITE),  # finite, and infinite in a trainer's float32
        ("-1.1e15", FailureClass.NON_FINITE),  # its square is not
        ("null", FailureClass.MISSING_REWARD),
        ("true", FailureClass.MISSING_REWARD),
        ('"1.0"', FailureClass.MISSING_REWARD),
        ("[1.0]", FailureClass.MISSING_REWARD),
        ("1.0 1.0", FailureClass.MALFORMED_BODY),
    ],
)
def test_what_trainers_cannot_compute_with_is_no_reward(
    literal: str, failure: FailureClass
) -> None:
    body = f'{{"reward": {literal}}}'.encode()
    outcome = read_reward(Reply(200, "application/json", body), 1, 0.0)
    assert isinstance(outcome, Failure)
    assert outcome.failure is failure


def test_components_mask_and_failure_class_are_carried() -> None:
    body = {"reward": 1, "reward_components": {"a": 0.5, "b": 2}, "mask_sample": True}
    outcome = read_reward(reply(body), 3, 0.5)
    assert outcome == ValidReward(1.0, {"a": 0.5, "b": 2.0}, mask_sample=True)
    assert isinstance(outcome, ValidReward)
    assert (outcome.attempts, outcome.latency_s) == (3, 0.5)
    judged = read_reward(
        reply(
            {
                "reward": 0.0,
                "_ng_failure_class": "judge_failed",
                "_ng_failure_judge_error": "no key",
            }
        ),
        1,
        0.0,
    )
    assert isinstance(judged, Failure)
    assert (judged.failure, judged.reported) == (FailureClass.REPORTED, "judge_failed")
    nested = read_reward(reply({"reward": 1.0, "instance_config": {"mask_sample": True}}), 1, 0.0)
    assert isinstance(nested, ValidReward)
    assert nested.mask_sample


def test_a_component_that_is_not_finite_spoils_the_reward() -> None:
    body = b'{"reward": 1.0, "reward_components": {"a": NaN}}'
    outcome = read_reward(Reply(200, "application/json", body), 1, 0.0)
    assert isinstance(outcome, Failure)
    assert outcome.failure is FailureClass.NON_FINITE


def test_a_422_is_told_by_path_and_message_without_the_row() -> None:
    detail = [
        {"loc": ["body", "expected_answer"], "msg": "Field required", "input": {"k": "SECRET"}}
    ]
    words = server_words(json.dumps({"detail": detail}).encode())
    assert words == "body.expected_answer: Field required"


@pytest.mark.parametrize(("header", "seconds"), [("2", 2.0), ("0.5", 0.5), ("-1", 0.0)])
def test_retry_after_in_seconds_is_understood(header: str, seconds: float) -> None:
    assert retry_after_s(header) == seconds


@pytest.mark.parametrize("header", ["", "soon", "nan", "inf"])
def test_a_retry_after_that_says_nothing_is_ignored(header: str) -> None:
    assert retry_after_s(header) is None


def test_retry_after_as_a_date_in_the_past_is_no_wait() -> None:
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
