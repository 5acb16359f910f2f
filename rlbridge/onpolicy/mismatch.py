"""Trainer against sampler: ratios, divergences, importance weights and masks. In float64.

The two score the same tokens with the same weights and still disagree (kernels, precision, stale
weights, another template). Definitions are those of verl 0.9 (`rollout_corr_helper`) and NeMo-RL
v0.7 (`loss_functions`, `grpo`), cited where they stand. All arrays are [batch, time]; what a mask
hides may hold anything, NaN too, and never changes a figure.

Sources: Schulman, "Approximating KL Divergence" (2020) for k1, k2, k3; Kong (1992) for the
effective sample size; Ionides (2008) for truncated importance sampling; Yao et al., "Your
Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025) for its use between
engines; IcePop (Ring-1T report, 2025) for two-sided masking.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rlbridge.errors import ContractError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Level = Literal["token", "sequence", "geometric"]
Estimator = Literal["k1", "k2", "k3"]

# verl clamps log ratios before exp: exp(20) is 485 million.
SAFETY_BOUND = 20.0
_LOG_MAX = 700.0  # exp of more overflows float64


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Log ratios of one batch, checked and cleaned.

    Attributes:
        log_ratio: float64 [b, t]: log(trainer / sampler), 0 where masked.
        trainer: float64 [b, t]: trainer's logprobs, 0 where masked.
        sampler: float64 [b, t]: sampler's logprobs, 0 where masked.
        mask: bool [b, t].
    """

    log_ratio: Array
    trainer: Array
    sampler: Array
    mask: Mask


def compare(trainer: npt.ArrayLike, sampler: npt.ArrayLike, mask: npt.ArrayLike) -> Mismatch:
    """Prepare a comparison.

    Args:
        trainer: [b, t] or [t], nats.
        sampler: of the same shape, nats.
        mask: of the same shape; true for the tokens that count.

    Raises:
        ContractError: shapes that differ, nothing to compare, or a NaN that is not masked.
    """
    pi = np.atleast_2d(np.asarray(trainer, dtype=np.float64))
    mu = np.atleast_2d(np.asarray(sampler, dtype=np.float64))
    keep = np.atleast_2d(np.asarray(mask)).astype(bool)
    if not pi.shape == mu.shape == keep.shape:
        raise ContractError(f"shapes differ: trainer {pi.shape}, sampler {mu.shape}, {keep.shape}")
    if not keep.any():
        raise ContractError("the mask hides every token; there is nothing to compare")
    pi, mu = np.where(keep, pi, 0.0), np.where(keep, mu, 0.0)
    bad = ~(np.isfinite(pi) & np.isfinite(mu))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise ContractError(
            f"logprob at [{row}, {column}] is not finite and not masked; mask tokens that have none"
        )
    return Mismatch(pi - mu, pi, mu, keep)


def kl(of: Mismatch, estimator: Estimator = "k3") -> float:
    """KL(sampler || trainer) per token, from the sampler's own samples; nats.

    With r = trainer / sampler: k1 = -log r (unbiased), k2 = (log r)² / 2, k3 = r - 1 - log r
    (unbiased, never negative). verl calls k1 `kl` and k3 `k3_kl`; NeMo-RL's `gen_kl_error` is k3.
    """
    return _mean(token_kl(of.log_ratio, estimator), of.mask)


def token_kl(log_ratio: Array, estimator: Estimator) -> Array:
    """The estimator at every token, of `log_ratio` = log(trainer / sampler)."""
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    # expm1 keeps the digits that exp(x) - 1 - x loses for small x.
    return np.asarray(np.expm1(np.minimum(log_ratio, _LOG_MAX)) - log_ratio)


def raw_weights(of: Mismatch, level: Level = "token") -> Array:
    """Importance weights trainer / sampler, [b, t], 0 where masked.

    `token`: each token's own ratio. `sequence`: the product over the sequence, on every token of
    it (verl's `rollout_is=sequence`, NeMo-RL's `sequence_level_importance_ratios`). `geometric`:
    its t-th root (GSPO; NeMo-RL's `seq-mask-tis`). Log ratios are clamped to ±20, as in verl.
    """
    log_weight = of.log_ratio
    if level != "token":
        log_weight = of.log_ratio.sum(axis=-1, keepdims=True)
        if level == "geometric":
            log_weight = log_weight / np.maximum(of.mask.sum(axis=-1, keepdims=True), 1)
        log_weight = np.broadcast_to(log_weight, of.log_ratio.shape)
    bounded = np.clip(log_weight, -SAFETY_BOUND, SAFETY_BOUND)
    return np.where(of.mask, np.exp(bounded), 0.0)


def truncated_weights(
    of: Mismatch, upper: float, *, lower: float = 0.0, level: Level = "token"
) -> Array:
    """Importance weights clamped to [lower, upper], [b, t], 0 where masked.

    Truncated importance sampling: verl's `rollout_is_threshold` as a number, NeMo-RL's `tis`
    (with `truncated_importance_sampling_ratio_min` as `lower`).

    Raises:
        ContractError: bounds that are not 0 <= lower <= upper, 0 < upper.
    """
    _check_bounds(lower or None, upper)
    return np.where(of.mask, np.clip(raw_weights(of, level), lower, upper), 0.0)


def bounded_weights(of: Mismatch, lower: float, upper: float, *, level: Level = "token") -> Array:
    """Importance weights, 0 outside [lower, upper]; [b, t], 0 where masked.

    IcePop: verl's `rollout_is_threshold` as "lower_upper", NeMo-RL's `icepop`.

    Raises:
        ContractError: bounds that are not 0 < lower <= upper.
    """
    _check_bounds(lower, upper)
    weights = raw_weights(of, level)
    return np.where((weights >= lower) & (weights <= upper), weights, 0.0)


def normalized(weights: Array, of: Mismatch, *, level: Level = "token") -> Array:
    """Weights with a mean of 1 over the batch (verl's `rollout_is_batch_normalize`)."""
    if level == "token":
        mean = _mean(weights, of.mask)
    else:
        rows = of.mask.any(axis=-1)
        mean = float(_row_mean(weights, of.mask)[rows].mean())
    return weights / mean if mean > 1e-8 else weights


def rejection_mask(
    of: Mismatch,
    upper: float,
    *,
    lower: float | None = None,
    estimator: Estimator = "k1",
    level: Literal["token", "seq_sum", "seq_mean", "seq_max"] = "token",
) -> Mask:
    """The mask without tokens or sequences beyond a trust region, bool [b, t].

    verl's `rollout_rs` (`token_k1` to `seq_max_k3`). For k1 the bounds are ratios and `lower` is
    1 / upper if None; for k2 and k3 `upper` bounds the divergence and there is no `lower`.

    Raises:
        ContractError: bounds that make no sense for the estimator, or `seq_max` with k1.
    """
    if estimator == "k1":
        if level == "seq_max":
            raise ContractError("seq_max is defined for k2 and k3 only")
        lower = 1.0 / upper if lower is None and upper > 0 else lower
        _check_bounds(lower, upper)
        low, high = float(np.log(lower or 0.0)), float(np.log(upper))
    else:
        if lower is not None:
            raise ContractError(f"{estimator} is a divergence: it has an upper bound only")
        _check_bounds(None, upper)
        low, high = -np.inf, upper
    bounded = np.clip(of.log_ratio, -SAFETY_BOUND, SAFETY_BOUND)
    value = np.where(of.mask, token_kl(bounded, estimator), 0.0)
    if level == "seq_sum":
        value = value.sum(axis=-1, keepdims=True)
    elif level == "seq_mean":
        value = _row_mean(value, of.mask)[:, None]
    elif level == "seq_max":
        value = value.max(axis=-1, keepdims=True)
    return of.mask & (value >= low) & (value <= high)


def sequence_mask(of: Mismatch, lower: float, upper: float) -> Mask:
    """The mask without sequences whose geometric mean ratio is out of bounds.

    NeMo-RL's `seq-mask-tis`, which then weighs the rest by `raw_weights` per token, untruncated.
    """
    _check_bounds(lower, upper)
    ratio = raw_weights(of, "geometric")
    return of.mask & (ratio >= lower) & (ratio <= upper)


def effective_sample_size(weights: Array, mask: Mask) -> float:
    """(Σw)² / Σw² over the unmasked, as a share of their number: 1 is no loss (Kong 1992).

    verl's `rollout_is_eff_sample_size`, but for its 1e-8.
    """
    kept = weights[mask]
    square = float((kept**2).mean()) if kept.size else 0.0
    return float(kept.mean()) ** 2 / square if square > 0 else 0.0


def multiplicative_error(of: Mismatch) -> Array:
    """Mean of exp(|log ratio|) of each sequence, [b]; NaN for one that is masked entirely.

    NeMo-RL's `seq_mult_prob_error`, by which `seq_logprob_error_threshold` masks sequences; over
    all tokens at once it is `token_mult_prob_error`.
    """
    rows = of.mask.any(axis=-1)
    error = _row_mean(_error(of), of.mask)
    return np.where(rows, error, np.nan)


def report(of: Mismatch, *, upper: float = 2.0, level: Level = "token") -> dict[str, float]:
    """Figures for a log line: how far the trainer is from what was sampled.

    Keys: `tokens`, `kl_k1`, `kl_k2`, `kl_k3` (nats a token), `max_logprob_diff`,
    `max_prob_diff`, `ratio_mean/min/max`, `weight_mean`, `truncated_share`, `ess`,
    `chi2_token`, `chi2_seq`, `ppl_ratio`, `mult_prob_error`.
    """
    m, raw = of.mask, raw_weights(of, level)
    ratios = raw[m]
    weights = np.minimum(raw, upper)
    rows = m.any(axis=-1)
    gaps = _row_mean(-of.log_ratio, m)[rows]
    sums = np.clip(of.log_ratio.sum(axis=-1)[rows], -SAFETY_BOUND, SAFETY_BOUND)
    figures: dict[str, Any] = {
        "tokens": m.sum(),
        **{f"kl_{k}": kl(of, k) for k in ("k1", "k2", "k3")},
        "max_logprob_diff": np.abs(of.log_ratio).max(),
        "max_prob_diff": np.abs(np.exp(of.trainer) - np.exp(of.sampler))[m].max(),
        "ratio_mean": ratios.mean(),
        "ratio_min": ratios.min(),
        "ratio_max": ratios.max(),
        "weight_mean": weights[m].mean(),
        "truncated_share": (ratios > upper).mean(),
        "ess": effective_sample_size(weights, m),
        "chi2_token": _mean(raw_weights(of) ** 2, m) - 1.0,
        "chi2_seq": np.exp(2.0 * sums).mean() - 1.0,
        "ppl_ratio": np.exp(gaps).mean(),
        "mult_prob_error": _mean(_error(of), m),
    }
    return {name: float(value) for name, value in figures.items()}


def _error(of: Mismatch) -> Array:
    return np.asarray(np.exp(np.minimum(np.abs(of.log_ratio), _LOG_MAX)))


def _mean(values: Array, mask: Mask) -> float:
    return float(values[mask].mean())


def _row_mean(values: Array, mask: Mask) -> Array:
    count = np.maximum(mask.sum(axis=-1), 1)
    return np.asarray(np.where(mask, values, 0.0).sum(axis=-1) / count)


def _check_bounds(lower: float | None, upper: float) -> None:
    if not upper > 0 or (lower is not None and not 0 < lower <= upper):
        raise ContractError(f"bounds must be 0 < lower <= upper, got {lower} and {upper}")
