"""Mixing rows by weight."""

import pytest

pytest.importorskip("verl", reason="the verl extra is not installed: make setup")

from rlbridge.errors import ConfigError
from rlbridge_verl.mixture import mixed

A, B = [f"a{n}" for n in range(80)], [f"b{n}" for n in range(4)]


def test_an_epoch_has_the_proportions_of_the_weights_and_every_row() -> None:
    rows = mixed([A, B], [1.0, 0.5])
    assert set(rows) == {*A, *B}
    assert sum(row in B for row in rows) == 40
    assert len(rows) == 120
    # Any stretch is nearly as mixed as the whole.
    assert all(3 <= sum(row in B for row in rows[at : at + 12]) <= 5 for at in range(0, 108, 12))


def test_a_large_file_with_a_small_share_loses_no_row() -> None:
    rows = mixed([B, A], [1.0, 0.5])
    assert set(rows) == {*A, *B}
    assert sum(row in B for row in rows) == 160


def test_without_weights_files_follow_each_other() -> None:
    assert mixed([A, B]) == A + B


@pytest.mark.parametrize(("weights", "words"), [([1.0], "1 weights for 2"), ([1, 0], "positive")])
def test_weights_that_fit_no_files_are_refused(weights: list[float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mixed([A, B], weights)
