"""Properties of pairs and of the split, whatever the rewards and prompts are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlbridge.transforms.pairs import Pairing, groups_of, pairs_of
from rlbridge.transforms.selection import Selection, choose
from rlbridge.transforms.spool import Index

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])), max_size=24
)
HOW = st.builds(
    Pairing,
    strategy=st.sampled_from(["same_prompt", "stratified"]),
    pairs=st.sampled_from(["best", "all", 1, 3]),
    min_gap=st.sampled_from([0.1, 0.3, 1.0]),
    high=st.just(0.5),
    low=st.just(0.25),
)


def index_of(rows: list[tuple[int, float]]) -> Index:
    n = len(rows)
    return Index(
        np.array([prompt for prompt, _ in rows], dtype=np.uint64),
        np.arange(n, dtype=np.uint64),
        np.array([reward for _, reward in rows], dtype=np.float64),
        *(np.zeros(n, dtype=np.int64) for _ in range(5)),
    )


@given(ROWS, HOW, st.integers(0, 3))
def test_pairs_are_of_one_prompt_above_the_gap_and_each_only_once(
    rows: list[tuple[int, float]], how: Pairing, seed: int
) -> None:
    index = index_of(rows)
    groups = groups_of(index, np.arange(len(rows), dtype=np.int64))
    pairs = list(pairs_of(index, groups, how, seed=seed))
    assert len(set(pairs)) == len(pairs)
    for chosen, rejected in pairs:
        assert rows[chosen][0] == rows[rejected][0]
        assert rows[chosen][1] - rows[rejected][1] >= how.min_gap
        if how.strategy == "stratified":
            assert rows[chosen][1] >= how.high
            assert rows[rejected][1] <= how.low
    if how.strategy == "stratified":
        used = [row for pair in pairs for row in pair]
        assert len(set(used)) == len(used)
    if how.strategy == "same_prompt":
        able = {
            p for p, high in rows if any(q == p and high - low >= how.min_gap for q, low in rows)
        }
        assert {rows[chosen][0] for chosen, _ in pairs} == able


@given(ROWS, st.integers(1, 3), st.floats(0.0, 0.9), st.integers(0, 3))
def test_a_choice_is_a_split_of_prompts_with_few_rows_each(
    rows: list[tuple[int, float]], most: int, held_out: float, seed: int
) -> None:
    index = index_of(rows)
    chosen = choose(index, Selection(max_per_prompt=most, validation=held_out, seed=seed))
    train, validation = ([rows[i][0] for i in part] for part in (chosen.train, chosen.validation))
    assert not set(train) & set(validation)
    assert set(train) | set(validation) == {prompt for prompt, _ in rows}
    for prompt in {prompt for prompt, _ in rows}:
        there = sum(p == prompt for p, _ in rows)
        assert (train + validation).count(prompt) == min(most, there)
    assert chosen.over_limit == len(rows) - len(train) - len(validation)
