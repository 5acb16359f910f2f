"""Rollouts as JSON, and as npz where size counts. Refuses files of another version.

JSON writes a missing logprob as null and reads it back as NaN. npz holds all tokens of all
rollouts in three arrays (5 to 9 bytes a token) beside one JSON document with everything else.
"""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson

from rlbridge.contracts.reward import FailureClass, InvalidReward, Reward, ValidReward
from rlbridge.contracts.rollout import Rollout, Turn
from rlbridge.contracts.tokens import Encoding, LogprobsMode, PromptSpan, SampledSpan
from rlbridge.errors import ContractError

VERSION = 1
_ARRAYS = ("token_ids", "logprobs", "provenance")


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """A JSON object of a rollout; `rollout_from_json` reads it back equal."""
    return _rollout_document(rollout, _span_to_json)


def rollout_from_json(document: Mapping[str, Any]) -> Rollout:
    """The rollout of a JSON object.

    Raises:
        ContractError: another version, a missing field, or data a constructor refuses.
    """
    return _read(document, _span_from_json)


def rollouts_to_npz(rollouts: Iterable[Rollout]) -> bytes:
    """A compressed npz file of rollouts."""
    arrays: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in _ARRAYS}
    at = 0

    def put(span: PromptSpan | SampledSpan) -> dict[str, Any]:
        nonlocal at
        logprobs = getattr(span, "logprobs", None)
        arrays["token_ids"].append(span.token_ids)
        arrays["provenance"].append(span.provenance)
        if logprobs is not None:
            arrays["logprobs"].append(logprobs)
        document = {"at": at, "length": len(span), **_span_extras(span)}
        at += len(span)
        return document

    documents = [_rollout_document(rollout, put) for rollout in rollouts]
    kinds = {"token_ids": np.int32, "logprobs": np.float32, "provenance": np.uint8}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        rollouts=np.frombuffer(orjson.dumps(documents), dtype=np.uint8),
        **{name: np.concatenate([np.empty(0, kinds[name]), *parts]).astype(kinds[name])
           for name, parts in arrays.items()},
    )  # fmt: skip
    return buffer.getvalue()


def rollouts_from_npz(data: bytes) -> list[Rollout]:
    """The rollouts of an npz file.

    Raises:
        ContractError: not such a file, cut short, or data a constructor refuses.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            documents = orjson.loads(file["rollouts"].tobytes())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ContractError(f"not an npz file of rollouts, or one cut short: {error}") from error
    cursor = _Cursor(arrays)
    return [_read(document, cursor.take) for document in documents]


class _Cursor:
    """Takes spans out of the arrays; logprobs exist for sampled tokens only."""

    def __init__(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        self.arrays = arrays
        self.logprobs_at = 0

    def take(self, document: Mapping[str, Any], *, sampled: bool) -> PromptSpan | SampledSpan:
        start, stop = document["at"], document["at"] + document["length"]
        ids, codes = (self.arrays[name][start:stop] for name in ("token_ids", "provenance"))
        if not sampled:
            return PromptSpan(ids, codes, document.get("vocab_size"))
        at = self.logprobs_at
        self.logprobs_at = at + document["length"]
        logprobs = self.arrays["logprobs"][at : self.logprobs_at]
        version, size = document.get("policy_version"), document.get("vocab_size")
        return SampledSpan(ids, logprobs, codes, version, size)


def _rollout_document(rollout: Rollout, write: Any) -> dict[str, Any]:
    return {
        "version": VERSION,
        "rollout_id": rollout.rollout_id,
        "group_id": rollout.group_id,
        "masked": rollout.masked and rollout.masked.value,
        "reward": reward_to_json(rollout.reward),
        "metadata": dict(rollout.metadata),
        "turns": [
            {
                "prompt": write(turn.prompt),
                "generation": [write(span) for span in turn.generation],
                "finish": turn.finish.value,
                "stop_reason": turn.stop_reason,
                "sampling": dict(turn.sampling),
                "logprobs_mode": turn.logprobs_mode and turn.logprobs_mode.value,
                "encoding": turn.encoding and asdict(turn.encoding),
                "call_id": turn.call_id,
            }
            for turn in rollout.turns
        ],
    }


def _read(document: Mapping[str, Any], read: Any) -> Rollout:
    if document.get("version") != VERSION:
        raise ContractError(
            f"$.version is {document.get('version')!r}; this rlbridge reads version {VERSION}"
        )
    try:
        return Rollout(
            document["rollout_id"],
            tuple(_turn(turn, read) for turn in document["turns"]),
            reward_from_json(document["reward"]),
            document["group_id"],
            document["masked"],
            document["metadata"],
        )
    except (KeyError, TypeError) as error:
        raise ContractError(f"a rollout's document lacks or garbles {error}") from error


def _turn(document: Mapping[str, Any], read: Any) -> Turn:
    mode, encoding = document["logprobs_mode"], document["encoding"]
    return Turn(
        read(document["prompt"], sampled=False),
        tuple(read(span, sampled=True) for span in document["generation"]),
        document["finish"],
        document["stop_reason"],
        document["sampling"],
        LogprobsMode(mode) if mode else None,
        Encoding(**encoding) if encoding else None,
        document["call_id"],
    )


def _span_extras(span: PromptSpan | SampledSpan) -> dict[str, Any]:
    extras = {name: getattr(span, name, None) for name in ("policy_version", "vocab_size")}
    return {name: value for name, value in extras.items() if value is not None}


def _span_to_json(span: PromptSpan | SampledSpan) -> dict[str, Any]:
    document = {"token_ids": span.token_ids.tolist(), "provenance": span.provenance.tolist()}
    if isinstance(span, SampledSpan):
        document["logprobs"] = [None if x != x else x for x in span.logprobs.tolist()]  # NaN
    return document | _span_extras(span)


def _span_from_json(document: Mapping[str, Any], *, sampled: bool) -> PromptSpan | SampledSpan:
    ids, codes = document["token_ids"], document["provenance"]
    size = document.get("vocab_size")
    if sampled:
        version = document.get("policy_version")
        return SampledSpan(ids, document["logprobs"], codes, version, size)
    return PromptSpan(ids, codes, size)


def reward_to_json(reward: Reward | None) -> dict[str, Any] | None:
    """A JSON object of a reward, valid or not; None for None."""
    if reward is None:
        return None
    document = asdict(reward)
    if isinstance(reward, InvalidReward):
        document["failure"] = reward.failure.value
    return {"valid": reward.valid, **document}


def reward_from_json(document: Sequence[Any] | Mapping[str, Any] | None) -> Reward | None:
    """The reward of such an object."""
    if document is None:
        return None
    fields = dict(document)
    if fields.pop("valid"):
        return ValidReward(**fields)
    return InvalidReward(**(fields | {"failure": FailureClass(fields["failure"])}))
