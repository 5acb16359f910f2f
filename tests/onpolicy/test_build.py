"""Any set of calls becomes the fewest sequences in which each sampled token is trained once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlbridge.contracts.reward import ValidReward
from rlbridge.contracts.rollout import MaskReason, Rollout, Turn
from rlbridge.contracts.sequence import TrainingSequence
from rlbridge.contracts.tokens import PromptSpan, Provenance, SampledSpan
from rlbridge.errors import ContractError
from rlbridge.onpolicy.build import Built, DropReason, build


def turn(prompt: list[int], sampled: list[int], call: str = "", logprob: float = -0.5) -> Turn:
    logprobs = [logprob] * len(sampled)
    return Turn(PromptSpan(prompt), (SampledSpan(sampled, logprobs),), call_id=call)


def rollout(*turns: Turn, **fields) -> Rollout:
    return Rollout("r", turns, ValidReward(1.0), **fields)


def sequences(*turns: Turn) -> list[list[int]]:
    return [s.token_ids.tolist() for s in build(rollout(*turns)).sequences]


def test_calls_that_go_on_from_each_other_make_one_sequence() -> None:
    built = build(rollout(turn([1, 2], [3]), turn([1, 2, 3, 4], [5, 6])))
    (only,) = built.sequences
    assert only.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert only.mask.tolist() == [False, False, True, False, True, True]
    assert only.turn.tolist() == [-1, -1, 0, -1, 1, 1]
    assert np.isnan(only.logprobs).tolist() == [True, True, False, True, False, False]
    assert only.weight == 1.0
    assert built.owners == (0, 0)


def test_branches_share_a_beginning_that_one_of_them_trains() -> None:
    calls = (turn([1], [2]), turn([1, 2, 3], [4]), turn([1, 2, 5], [6]))
    built = build(rollout(*calls))
    assert [s.mask.sum() for s in built.sequences] == [2, 1]
    assert built.sequences[1].parts[0].owned is False
    assert [s.weight for s in built.sequences] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    # What another sequence trains stays in the context here, with its logprob and provenance.
    assert built.sequences[1].provenance.tolist()[1] == Provenance.SAMPLED


def test_a_compacted_history_begins_a_sequence_of_its_own() -> None:
    assert sequences(turn([1, 2], [3]), turn([1, 9], [4])) == [[1, 2, 3], [1, 9, 4]]


def test_a_sample_that_repeats_another_samples_beginning_is_trained_itself() -> None:
    """Two answers to one prompt, one the beginning of the other: both were sampled."""
    built = build(rollout(turn([1], [2], "a"), turn([1], [2, 3], "b")))
    assert built.trained_tokens == 3
    assert len(built.sequences) == 2


def test_a_call_captured_twice_is_trained_once() -> None:
    built = build(rollout(turn([1], [2], "a"), turn([1], [2], "a"), turn([1, 2, 3], [4], "b")))
    assert built.trained_tokens == 2
    assert [(d.turn, d.reason) for d in built.dropped] == [(1, DropReason.DUPLICATE)]


def test_equal_samples_of_two_calls_are_both_trained() -> None:
    assert build(rollout(turn([1], [2], "a"), turn([1], [2], "b"))).trained_tokens == 2


def test_of_a_retried_call_the_answer_that_was_used_is_trained() -> None:
    retried = (turn([1], [7], "a"), turn([1], [8], "a"), turn([1, 7, 3], [4], "b"))
    built = build(rollout(*retried))
    assert [(d.turn, d.reason, d.kept) for d in built.dropped] == [(1, DropReason.RETRIED, 0)]
    assert [s.token_ids.tolist() for s in built.sequences] == [[1, 7, 3, 4]]


def test_a_missing_logprob_is_context_and_not_trained() -> None:
    spans = (SampledSpan([2, 3], [None, -1.0]),)
    (only,) = build(rollout(Turn(PromptSpan([1]), spans))).sequences
    assert only.mask.tolist() == [False, False, True]
    assert np.isnan(only.logprobs[1])
    assert only.provenance.tolist() == [Provenance.PROMPT, Provenance.MISSING, Provenance.SAMPLED]


def test_a_masked_rollout_keeps_its_tokens_and_trains_none() -> None:
    built = build(rollout(turn([1], [2]), masked=MaskReason.ENVIRONMENT))
    assert built.trained_tokens == 0
    assert built.sequences[0].weight == 0.0
    assert built.sequences[0].token_ids.tolist() == [1, 2]


def test_policy_versions_of_one_call_are_parts_of_their_own() -> None:
    spans = (SampledSpan([2], [-1.0], None, "v1"), SampledSpan([3], [-1.0], None, "v2"))
    (only,) = build(rollout(Turn(PromptSpan([1]), spans))).sequences
    assert [(p.start, p.stop, p.policy_version) for p in only.parts] == [(1, 2, "v1"), (2, 3, "v2")]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("mask", [True, True], "no logprob"),
        ("mask", [True], "2 token IDs but 1 of mask"),
        ("provenance", [0, 0], "was not sampled"),
    ],
)
def test_a_sequence_refuses_to_train_what_was_not_sampled(name, value, why) -> None:
    fields = {
        "rollout_id": "r",
        "token_ids": np.array([1, 2], dtype=np.int32),
        "logprobs": np.array([np.nan, -1.0], dtype=np.float32),
        "mask": np.array([False, True]),
        "provenance": np.array([0, 1], dtype=np.uint8),
        "turn": np.array([-1, 0], dtype=np.int32),
        "parts": (),
        "weight": 1.0,
    }
    with pytest.raises(ContractError, match=why):
        TrainingSequence(**fields | {name: np.array(value)})


@st.composite
def histories(draw: st.DrawFn) -> list[Turn]:
    """Calls of a small vocabulary that go on from, branch off or rewrite each other."""
    turns: list[Turn] = []
    for number in range(draw(st.integers(1, 9))):
        tokens = st.lists(st.integers(0, 2), min_size=1, max_size=3)
        if turns and draw(st.integers(0, 4)):
            base = draw(st.sampled_from(turns)).token_ids.tolist()
            cut = draw(st.integers(0, 4))
            prompt = (base[: len(base) - 1] if cut == 4 else base) + draw(tokens) * (cut > 0)
        else:
            prompt = draw(tokens)
        sampled = draw(tokens)
        logprobs = draw(st.lists(st.sampled_from([-0.5, None]), min_size=len(sampled),
                                 max_size=len(sampled)))  # fmt: skip
        turns.append(
            Turn(PromptSpan(prompt or [0]), (SampledSpan(sampled, logprobs),), call_id=f"{number}")
        )
    return draw(st.permutations(turns))


def fewest(turns: list[Turn]) -> int:
    """Calls that no other call goes on from, by comparing all pairs."""
    taken: set[int] = set()
    for j, later in enumerate(turns):
        prompt = later.prompt.token_ids.tolist()
        best, parent = -1, None
        for i, earlier in enumerate(turns):
            full = earlier.token_ids.tolist()
            if i != j and prompt[: len(full)] == full and len(full) > best:
                best, parent = len(full), i
        if parent is not None:
            taken.add(parent)
    return len(turns) - len(taken)


@settings(max_examples=1800, deadline=None)
@given(turns=histories())
def test_each_sampled_token_is_trained_exactly_once_in_the_fewest_sequences(
    turns: list[Turn],
) -> None:
    built: Built = build(Rollout("r", tuple(turns), ValidReward(0.0)))
    assert len(built.sequences) == fewest(turns)
    trained: dict[tuple[int, int], int] = {}
    for number, sequence in enumerate(built.sequences):
        for part in sequence.parts:
            full = turns[part.turn].token_ids
            assert sequence.token_ids[: len(full)].tolist() == full.tolist()
            assert part.owned == (built.owners[part.turn] == number)
        for at in np.flatnonzero(sequence.mask):
            owner = turns[sequence.turn[at]]
            place = int(at) - len(owner.prompt)
            assert sequence.token_ids[at] == owner.sampled_ids[place]
            assert sequence.logprobs[at] == owner.logprobs[place]
            key = (int(sequence.turn[at]), place)
            trained[key] = trained.get(key, 0) + 1
        assert not sequence.mask[np.isnan(sequence.logprobs)].any()
    expected = {
        (i, int(place)): 1 for i, one in enumerate(turns) for place in np.flatnonzero(one.trainable)
    }
    assert trained == expected
    assert sum(s.weight for s in built.sequences) == pytest.approx(1.0 if expected else 0.0)


def test_identical_answers_of_calls_without_an_id_count_as_one_capture() -> None:
    assert build(rollout(turn([1], [2]), turn([1], [2]))).trained_tokens == 1
