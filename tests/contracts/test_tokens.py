"""Spans refuse bad data at birth and stay as they were born."""

import pickle

import numpy as np
import pytest

from rlbridge.contracts.reward import FailureClass, InvalidReward, ValidReward
from rlbridge.contracts.rollout import FinishReason, MaskReason, Rollout, Turn
from rlbridge.contracts.tokens import PromptSpan, Provenance, SampledSpan
from rlbridge.errors import ContractError


def turn() -> Turn:
    return Turn(PromptSpan([1, 2]), (SampledSpan([3, 4], [-0.5, None]),), FinishReason.STOP)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        (["token_id:1"], "must be integers"),
        ("12", "the string '12'"),
        ([1.0], "must be integers"),
        ([True], "must be integers"),
        ([None], "must be integers"),
        ([2**31], "out of vocabulary"),
        ([-1], "token ID -1 is out of vocabulary"),
        ([[1]], "one dimension"),
        ([1, [2]], "flat list"),
        ([2**70], "must be integers"),
    ],
)
def test_token_ids_that_are_not_ids_are_refused(ids: object, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        PromptSpan(ids)


@pytest.mark.parametrize(
    ("logprobs", "why"),
    [
        ([0.1], "not the log of a probability"),
        ([float("inf")], "not the log of a probability"),
        ([float("-inf")], "not the log of a probability"),
        (["-1"], "must be numbers or None"),
        ([True], "must be numbers or None"),
        ([-1, -2], "1 sampled token IDs but 2 logprobs"),
        ([], "1 sampled token IDs but 0 logprobs"),
        ("-1", "the string '-1'"),
        ([None, "x"], "must be numbers or None"),
    ],
)
def test_logprobs_that_are_not_logprobs_are_refused(logprobs: object, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        SampledSpan([1], logprobs)


def test_an_id_at_the_vocabulary_size_is_refused_and_one_below_is_not() -> None:
    assert PromptSpan([9], vocab_size=10).token_ids.tolist() == [9]
    with pytest.raises(ContractError, match=r"token ID 10 is out of vocabulary \(0 to 9\)"):
        SampledSpan([10], [-1.0], vocab_size=10)


def test_an_empty_generation_is_refused() -> None:
    with pytest.raises(ContractError, match="holds no token"):
        SampledSpan([], [])
    with pytest.raises(ContractError, match="without a sampled span"):
        Turn(PromptSpan([1]), ())
    with pytest.raises(ContractError, match="prompt is empty"):
        Turn(PromptSpan([]), (SampledSpan([1], [-1.0]),))


def test_a_prompt_has_nowhere_to_put_logprobs() -> None:
    assert not hasattr(PromptSpan([1]), "logprobs")
    with pytest.raises(TypeError):
        PromptSpan([1], logprobs=[0.0])


def test_a_missing_logprob_stays_nan_and_is_never_trainable() -> None:
    span = SampledSpan([3, 4], [-0.5, None])
    assert np.isnan(span.logprobs[1])
    assert span.provenance.tolist() == [Provenance.SAMPLED, Provenance.MISSING]
    assert span.trainable.tolist() == [True, False]


def test_only_sampled_and_missing_tokens_fit_in_a_sampled_span() -> None:
    with pytest.raises(ContractError, match="did not sample"):
        SampledSpan([1], [-1.0], provenance=[Provenance.BRIDGE])
    with pytest.raises(ContractError, match="codes of Provenance"):
        PromptSpan([1], provenance=[9])
    with pytest.raises(ContractError, match="1 token IDs but 2 provenance"):
        PromptSpan([1], provenance=[0, 0])


def test_spans_do_not_change_when_their_callers_array_does() -> None:
    ids = np.array([1, 2], dtype=np.int32)
    span = PromptSpan(ids)
    ids[0] = 7
    assert span.token_ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        span.token_ids[0] = 7


def test_records_survive_pickling_read_only_and_equal() -> None:
    rollout = Rollout("r", (turn(),), ValidReward(1.0), group_id="g")
    again = pickle.loads(pickle.dumps(rollout))  # noqa: S301 # our own bytes
    assert again == rollout
    assert not again.turns[0].prompt.token_ids.flags.writeable
    assert again != Rollout("r", (turn(),), ValidReward(0.0), group_id="g")


def test_dtypes_are_int32_and_float32_whatever_came_in() -> None:
    span = SampledSpan(np.array([1], dtype=np.int64), np.array([-1.0]))
    assert (span.token_ids.dtype, span.logprobs.dtype) == (np.int32, np.float32)


def test_a_turn_joins_the_spans_of_two_policy_versions() -> None:
    spans = (SampledSpan([3], [-1.0], None, 7), SampledSpan([4], [None], None, 8))
    both = Turn(PromptSpan([1, 2]), spans)
    assert both.token_ids.tolist() == [1, 2, 3, 4]
    assert both.sampled_ids.tolist() == [3, 4]
    assert both.trainable.tolist() == [True, False]
    assert np.isnan(both.logprobs[1])


@pytest.mark.parametrize(
    ("reward", "masked", "trainable"),
    [
        (None, None, False),
        (ValidReward(0.0), None, True),
        (ValidReward(1.0, mask_sample=True), None, False),
        (InvalidReward(FailureClass.TIMEOUT, "no answer"), None, False),
        (ValidReward(1.0), MaskReason.TOKENS_LOST, False),
    ],
)
def test_only_an_unmasked_rollout_with_a_valid_reward_is_trainable(
    reward: object, masked: object, trainable: bool
) -> None:
    assert Rollout("r", (turn(),), reward, masked=masked).trainable is trainable


def test_a_rollout_without_turns_must_say_why() -> None:
    with pytest.raises(ContractError, match="ENGINE_FAILED"):
        Rollout("r", ())
    assert not Rollout("r", (), masked=MaskReason.ENGINE_FAILED).trainable


def test_a_prompts_end_is_a_span_that_keeps_nothing_of_the_rest() -> None:
    prompt = PromptSpan([1, 2, 3], [0, 1, 2], vocab_size=9)
    end = prompt.behind(1)
    assert end == PromptSpan([2, 3], [1, 2], vocab_size=9)
    assert end.token_ids.base is None
    assert not end.token_ids.flags.writeable
