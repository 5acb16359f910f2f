"""Mismatch figures: by hand, by verl's own code, and blind to what is masked."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlbridge.errors import ContractError
from rlbridge.onpolicy import mismatch as m

LOG2 = math.log(2.0)


def test_figures_of_two_tokens_by_hand() -> None:
    # Ratios 2 and 1/2: the trainer doubles one probability and halves the other.
    of = m.compare([[-1.0, -2.0 - LOG2]], [[-1.0 - LOG2, -2.0]], [[1, 1]])
    assert m.raw_weights(of).tolist() == [[pytest.approx(2.0), pytest.approx(0.5)]]
    assert m.kl(of, "k1") == pytest.approx(0.0)
    assert m.kl(of, "k2") == pytest.approx(LOG2**2 / 2)
    assert m.kl(of, "k3") == pytest.approx((2 - 1 - LOG2 + 0.5 - 1 + LOG2) / 2)
    assert m.raw_weights(of, "sequence").tolist() == [[pytest.approx(1.0)] * 2]
    assert m.effective_sample_size(m.raw_weights(of), of.mask) == pytest.approx(1.25**2 / 2.125)
    assert m.multiplicative_error(of).tolist() == [pytest.approx(2.0)]


def test_truncation_clamps_and_bounding_zeroes() -> None:
    of = m.compare(
        [[-1.0, -1.0, -1.0]], [[-1.0 - math.log(4), -1.0, -1.0 + math.log(4)]], [[1] * 3]
    )
    assert m.truncated_weights(of, 2.0).tolist() == [[2.0, 1.0, pytest.approx(0.25)]]
    assert m.truncated_weights(of, 2.0, lower=0.5).tolist() == [[2.0, 1.0, 0.5]]
    assert m.bounded_weights(of, 0.5, 2.0).tolist() == [[0.0, 1.0, 0.0]]
    assert m.rejection_mask(of, 2.0).tolist() == [[False, True, False]]
    assert m.sequence_mask(of, 0.999, 1.002).all()  # the geometric mean of 4, 1 and 1/4 is 1


def test_a_small_difference_keeps_its_digits() -> None:
    of = m.compare([[-1.0]], [[-1.0 - 1e-9]], [[1]])
    assert m.kl(of, "k3") == pytest.approx(0.5e-18, rel=1e-6)


def test_a_huge_difference_does_not_overflow() -> None:
    of = m.compare([[-1.0, -9000.0]], [[-9000.0, -1.0]], [[1, 1]])
    assert np.isfinite(list(m.report(of).values())).all()
    assert m.raw_weights(of).max() == pytest.approx(math.exp(20))


@pytest.mark.parametrize(
    ("trainer", "sampler", "mask", "why"),
    [
        ([[-1.0]], [[-1.0, -1.0]], [[1]], "shapes differ"),
        ([[-1.0]], [[-1.0]], [[0]], "nothing to compare"),
        ([[np.nan]], [[-1.0]], [[1]], r"\[0, 0\] is not finite and not masked"),
    ],
)
def test_what_cannot_be_compared_is_refused(trainer, sampler, mask, why) -> None:
    with pytest.raises(ContractError, match=why):
        m.compare(trainer, sampler, mask)


@pytest.mark.parametrize(("lower", "upper"), [(3.0, 2.0), (0.0, 2.0), (0.5, 0.0), (-1.0, 2.0)])
def test_bounds_that_make_no_sense_are_refused(lower: float, upper: float) -> None:
    of = m.compare([[-1.0]], [[-1.0]], [[1]])
    with pytest.raises(ContractError, match="bounds must be"):
        m.bounded_weights(of, lower, upper)


SHAPE = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)


@settings(max_examples=1500, deadline=None)
@given(data=st.data(), shape=SHAPE)
def test_masked_positions_never_change_a_figure(data: st.DataObject, shape) -> None:
    logprobs = hnp.arrays(np.float64, shape, elements=st.floats(-30, 0))
    trainer, sampler = data.draw(logprobs), data.draw(logprobs)
    mask = data.draw(hnp.arrays(np.bool_, shape).filter(np.any))
    anything = hnp.arrays(np.float64, shape, elements=st.floats(width=64))
    noise = np.where(mask, trainer, data.draw(anything))
    other = np.where(mask, sampler, data.draw(anything))
    clean, dirty = m.compare(trainer, sampler, mask), m.compare(noise, other, mask)
    for level in ("token", "sequence", "geometric"):
        assert m.report(clean, level=level) == m.report(dirty, level=level)
        assert np.array_equal(m.truncated_weights(clean, 2.0, level=level),
                              m.truncated_weights(dirty, 2.0, level=level))  # fmt: skip
    for estimator in ("k1", "k2", "k3"):
        assert np.array_equal(m.rejection_mask(clean, 2.0, estimator=estimator),
                              m.rejection_mask(dirty, 2.0, estimator=estimator))  # fmt: skip
    assert np.array_equal(
        m.multiplicative_error(clean), m.multiplicative_error(dirty), equal_nan=True
    )
    assert (m.raw_weights(clean)[~mask] == 0).all()


def batch(seed: int = 0):
    rng = np.random.default_rng(seed)
    sampler = -rng.exponential(1.5, (6, 20))
    trainer = np.minimum(sampler + rng.normal(0, 0.4, (6, 20)), 0.0)
    mask = rng.random((6, 20)) < 0.8
    mask[:, 0] = True
    return trainer, sampler, mask


@pytest.fixture(scope="module")
def verl():
    pytest.importorskip("verl")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of verl's own imports
        from verl.trainer.ppo import rollout_corr_helper
    torch = pytest.importorskip("torch")
    return rollout_corr_helper, lambda a: torch.tensor(np.asarray(a, dtype=np.float64))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("normalize", [False, True])
def test_weights_are_verls(verl, level: str, normalize: bool) -> None:
    helper, tensor = verl
    trainer, sampler, mask = batch()
    of = m.compare(trainer, sampler, mask)
    for spec, ours in (
        (2.0, m.truncated_weights(of, 2.0, level=level)),
        ("0.7_1.4", m.bounded_weights(of, 0.7, 1.4, level=level)),
    ):
        theirs, figures = helper.compute_rollout_correction_weights(
            tensor(trainer - sampler), tensor(mask), level, spec, normalize
        )
        weights = m.normalized(ours, of, level=level) if normalize else ours
        np.testing.assert_allclose(weights, theirs.numpy(), rtol=1e-7)
        ess = m.effective_sample_size(ours, of.mask)
        assert ess == pytest.approx(figures["rollout_is_eff_sample_size"], rel=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("level", ["token", "seq_sum", "seq_mean", "seq_max"])
def test_rejection_masks_are_verls(verl, level: str, estimator: str) -> None:
    helper, tensor = verl
    if (level, estimator) == ("seq_max", "k1"):
        with pytest.raises(ContractError, match="k2 and k3"):
            m.rejection_mask(m.compare([[-1.0]], [[-1.0]], [[1]]), 2.0, level="seq_max")
        return
    for seed in range(4):
        trainer, sampler, mask = batch(seed)
        of = m.compare(trainer, sampler, mask)
        upper = {"token": 1.3, "seq_sum": 2.0, "seq_mean": 1.1, "seq_max": 0.5}[level]
        upper = upper if estimator == "k1" else upper / 10
        spec = f"{1 / upper}_{upper}" if estimator == "k1" else upper
        theirs, _ = helper.compute_rollout_rejection_mask(
            tensor(trainer - sampler), tensor(mask), f"{level}_{estimator}", spec
        )
        ours = m.rejection_mask(of, upper, estimator=estimator, level=level)
        assert np.array_equal(ours, theirs.numpy() > 0.5)


def test_figures_are_verls(verl) -> None:
    helper, tensor = verl
    trainer, sampler, mask = batch()
    figures = m.report(m.compare(trainer, sampler, mask))
    theirs = helper.compute_offpolicy_metrics(tensor(trainer), tensor(sampler), tensor(mask))
    for ours, name in (
        ("kl_k1", "kl"),
        ("kl_k3", "k3_kl"),
        ("chi2_token", "chi2_token"),
        ("chi2_seq", "chi2_seq"),
        ("ppl_ratio", "ppl_ratio"),
    ):
        assert figures[ours] == pytest.approx(theirs[name], rel=1e-6)
