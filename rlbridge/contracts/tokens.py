"""Spans of token IDs: what an engine was prompted with and what it sampled. Refuses bad data.

A `PromptSpan` has no logprobs field, so nobody can invent zeros for it. A `SampledSpan` has one
logprob a token, NaN where the engine gave none; such tokens are never trainable. Arrays are
numpy, read-only once inside a span: IDs `int32`, logprobs `float32`, provenance `uint8`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rlbridge.errors import ContractError

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

_Scalar = TypeVar("_Scalar", bound=np.generic)
_INT32_MAX = int(np.iinfo(np.int32).max)


class Provenance(IntEnum):
    """Where one token came from. Stored as `uint8`, so the numbers are a file format."""

    PROMPT = 0
    """Rendered or encoded from text: the engine was prompted with it."""
    SAMPLED = 1
    """Sampled by the engine: in this turn inside a `SampledSpan`, in an earlier one elsewhere."""
    BRIDGE = 2
    """Appended after sampled tokens by the bridge: template glue and new messages."""
    REPAIRED = 3
    """Put in place of rendered tokens by the splice, or a turn end the sample lacked."""
    MISSING = 4
    """Stands where a sampled token was whose ID or logprob is lost; never trained."""


class LogprobsMode(StrEnum):
    """What the engine's logprobs were taken from (vLLM's `--logprobs-mode`)."""

    RAW = "raw"
    """Of the model's logits: comparable with a trainer only at temperature 1 without top-p."""
    PROCESSED = "processed"
    """After temperature, penalties and truncation: what was really sampled from."""


class Record:
    """Equality and pickling for frozen dataclasses that hold numpy arrays.

    Arrays are equal when dtype, shape and elements are, NaN equal to NaN. Unpickling goes through
    the constructor, so that a pickled span is checked, and read-only, like any other.
    """

    __slots__ = ()

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Record)  # noqa: S101 # for mypy: the types are the same
        return all(map(_same, self._values(), other._values()))

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), self._values()


@dataclass(frozen=True, slots=True, eq=False)
class PromptSpan(Record):
    """Tokens an engine was prompted with. They have no logprobs and are never trained.

    Attributes:
        token_ids: int32 [n]; n may be 0.
        provenance: uint8 [n] of `Provenance`; PROMPT everywhere unless said otherwise. SAMPLED
            marks a token that an earlier turn sampled.
        vocab_size: IDs must be below it; None where nobody knows.

    Raises:
        ContractError: IDs that are no integers, negative or out of vocabulary; lengths that
            differ; a provenance that does not exist.
    """

    token_ids: IntArray
    provenance: ByteArray = None  # type: ignore[assignment]
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        ids = as_token_ids(self.token_ids, vocab_size=self.vocab_size)
        codes = _as_provenance(self.provenance, len(ids), default=Provenance.PROMPT)
        object.__setattr__(self, "token_ids", ids)
        object.__setattr__(self, "provenance", codes)

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def joined(cls, spans: "Sequence[PromptSpan | SampledSpan]") -> "PromptSpan":
        """The prompt that consists of these spans, in order; provenance is kept.

        Each span was checked at birth, so this costs one copy and no second check: a prompt of
        100,000 tokens is extended every turn.
        """
        span = object.__new__(cls)
        ids = np.concatenate([part.token_ids for part in spans])
        codes = np.concatenate([part.provenance for part in spans])
        object.__setattr__(span, "token_ids", _frozen(ids))
        object.__setattr__(span, "provenance", _frozen(codes))
        object.__setattr__(span, "vocab_size", spans[0].vocab_size)
        return span

    def behind(self, start: int) -> "PromptSpan":
        """The tokens from `start` on: a copy, so that it doesn't keep the whole prompt."""
        span = object.__new__(PromptSpan)
        object.__setattr__(span, "token_ids", _frozen(self.token_ids[start:].copy()))
        object.__setattr__(span, "provenance", _frozen(self.provenance[start:].copy()))
        object.__setattr__(span, "vocab_size", self.vocab_size)
        return span


@dataclass(frozen=True, slots=True, eq=False)
class SampledSpan(Record):
    """Tokens one policy version sampled in one call, each with its logprob.

    Attributes:
        token_ids: int32 [n], n >= 1.
        logprobs: float32 [n], nats, <= 0; NaN where the engine gave none.
        provenance: uint8 [n], SAMPLED or MISSING; a NaN logprob is always MISSING.
        policy_version: the weights that sampled it, in the engine's own words.
        vocab_size: IDs must be below it; None where nobody knows.

    Raises:
        ContractError: an empty span, lengths that differ, a positive or infinite logprob, bad
            IDs, a string, or a provenance other than SAMPLED and MISSING.
    """

    token_ids: IntArray
    logprobs: FloatArray
    provenance: ByteArray = None  # type: ignore[assignment]
    policy_version: int | str | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        ids = as_token_ids(self.token_ids, vocab_size=self.vocab_size)
        if len(ids) == 0:
            raise ContractError(
                "a sampled span holds no token; a call that generated nothing is a failed turn: "
                "leave it out of the rollout or mask the rollout"
            )
        logprobs = as_logprobs(self.logprobs)
        if len(ids) != len(logprobs):
            raise ContractError(
                f"{len(ids)} sampled token IDs but {len(logprobs)} logprobs; "
                "ask the engine for a logprob of every sampled token"
            )
        codes = _as_provenance(self.provenance, len(ids), default=Provenance.SAMPLED)
        if bool(((codes != Provenance.SAMPLED) & (codes != Provenance.MISSING)).any()):
            raise ContractError(
                "a sampled span may hold SAMPLED and MISSING tokens only; what the engine did not "
                "sample belongs in a PromptSpan"
            )
        unknown = np.isnan(logprobs)
        if bool(unknown.any()):
            codes = np.where(unknown, np.uint8(Provenance.MISSING), codes)
        object.__setattr__(self, "token_ids", ids)
        object.__setattr__(self, "logprobs", logprobs)
        object.__setattr__(self, "provenance", _frozen(codes))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def trainable(self) -> BoolArray:
        """Mask, bool [n]: the tokens with an ID and a logprob of the engine's own."""
        mask: BoolArray = self.provenance == Provenance.SAMPLED
        return mask


@dataclass(frozen=True, slots=True)
class Encoding:
    """Which tokenizer and chat template made a prompt; two prompts compare only if it is equal.

    Attributes:
        tokenizer: a hash of the tokenizer's vocabulary and merges; empty if unknown.
        template: a hash of the chat template's source; empty if unknown.
    """

    tokenizer: str = ""
    template: str = ""


def as_token_ids(
    values: npt.ArrayLike | Iterable[int], *, vocab_size: int | None = None
) -> IntArray:
    """A read-only int32 [n] array of token IDs; no copy if `values` is one already.

    Raises:
        ContractError: strings, floats, booleans, more than one dimension, negative IDs, IDs
            beyond int32 or not below `vocab_size`.
    """
    array = _one_dimension(values, "token IDs")
    if array.size == 0:
        return _frozen(np.empty(0, dtype=np.int32))
    if array.dtype.kind not in "iu":
        raise ContractError(
            f"token IDs must be integers, got {_example(array)}; "
            'an ID such as "token_id:7" is read by rlbridge.contracts.codecs'
        )
    low, high = int(array.min()), int(array.max())
    limit = _INT32_MAX if vocab_size is None else vocab_size - 1
    if low < 0 or high > limit:
        raise ContractError(
            f"token ID {low if low < 0 else high} is out of vocabulary (0 to {limit}); "
            "the tokenizer and the engine's model don't belong together"
        )
    return _frozen(array.astype(np.int32, copy=False), values)


def as_logprobs(values: npt.ArrayLike | Iterable[float | None]) -> FloatArray:
    """A read-only float32 [n] array of logprobs (nats); None becomes NaN, never 0.0.

    Raises:
        ContractError: strings, booleans, more than one dimension, a positive or infinite value.
    """
    array = _one_dimension(values, "logprobs")
    if array.size == 0:
        return _frozen(np.empty(0, dtype=np.float32))
    if array.dtype == object:  # a list with None in it
        array = _none_to_nan(array)
    if array.dtype.kind not in "fiu":
        raise ContractError(f"logprobs must be numbers or None, got {_example(array)}")
    logprobs = array.astype(np.float32, copy=False)
    if bool((logprobs > 0).any()) or bool(np.isinf(logprobs).any()):
        index = int(np.argmax((logprobs > 0) | np.isinf(logprobs)))
        raise ContractError(
            f"logprob {float(logprobs[index])!r} at {index} is not the log of a probability above "
            "0 and at most 1; send NaN or None where the engine gave none"
        )
    return _frozen(logprobs, values)


def _one_dimension(values: Any, what: str) -> npt.NDArray[Any]:
    if isinstance(values, str | bytes):
        raise ContractError(f"{what} must be a list of numbers, got the string {values[:40]!r}")
    if not isinstance(values, np.ndarray):
        values = values if isinstance(values, list | tuple) else list(values)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError) as error:
        raise ContractError(f"{what} must be a flat list of numbers: {error}") from error
    if array.ndim != 1:
        raise ContractError(f"{what} must have one dimension, got shape {array.shape}")
    return array


def _none_to_nan(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    kinds = {type(value) for value in array}
    if not kinds <= {float, int, type(None), np.float32, np.float64}:
        raise ContractError(f"logprobs must be numbers or None, got {_example(array)}")
    return np.array([np.nan if value is None else value for value in array], dtype=np.float64)


def _as_provenance(values: Any, length: int, *, default: Provenance) -> ByteArray:
    if values is None:
        return _frozen(np.full(length, default, dtype=np.uint8))
    array = _one_dimension(values, "provenance")
    if len(array) != length:
        raise ContractError(f"{length} token IDs but {len(array)} provenance codes")
    if array.size and (
        array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) > max(Provenance)
    ):
        raise ContractError(f"provenance must be codes of Provenance, got {_example(array)}")
    return _frozen(array.astype(np.uint8, copy=False), values)


def _frozen(array: npt.NDArray[_Scalar], source: object = None) -> npt.NDArray[_Scalar]:
    """The array, read-only; a copy if it is the caller's own and still writable."""
    if array.flags.writeable:
        if array is source or array.base is not None:
            array = array.copy()
        array.flags.writeable = False
    return array


def _example(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} such as {array[0]!r}" if array.size else str(array.dtype)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b)
