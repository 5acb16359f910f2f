"""Rows of training data beside NeMo-RL's own: laid out in optimizer steps, and filled up.

Every optimizer step takes the same number of rows, a multiple of what its ranks and microbatches
need, and never takes other rollouts than NeMo-RL gave it. What fills it up is in no loss.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from rlbridge_nemo_rl.sequences import TrainingRow

PADDING = -1
"""Stands in an update for a row that only fills it up."""


def updates(rows: int, owners: Sequence[int], update_rows: int, multiple: int) -> list[list[int]]:
    """The rows of each optimizer step, as many in each.

    Args:
        rows: the rollouts' own rows; a multiple of `update_rows`.
        owners: of each other sequence, the row of its rollout.
        update_rows: own rows of a step, in their order.
        multiple: of which each step's number of rows has to be one.

    Returns:
        For each step the number of an own row, followed by those of its rollout's others, counted
        on from `rows`; `PADDING` at the end.
    """
    others: dict[int, list[int]] = {}
    for number, owner in enumerate(owners, start=rows):
        others.setdefault(owner, []).append(number)
    steps = [
        [n for row in range(start, start + update_rows) for n in (row, *others.get(row, ()))]
        for start in range(0, rows, update_rows)
    ]
    size = _up(max(map(len, steps)), multiple)
    return [step + [PADDING] * (size - len(step)) for step in steps]


def data_of(rows: Sequence[TrainingRow], sample_mask: torch.Tensor, width: int) -> Any:
    """Training data of rows, as `grpo_train` makes them of messages.

    Args:
        rows: at least one.
        sample_mask: float [rows].
        width: of which the number of columns is a multiple.

    Returns:
        A `BatchedDataDict` without logprobs of the policy and without advantages.
    """
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    lengths = [len(row.token_ids) for row in rows]
    columns = _up(max(lengths), width)

    def padded(values: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
        tensors = [torch.tensor(value, dtype=dtype) for value in values]
        return torch.stack([pad(tensor, (0, columns - len(tensor))) for tensor in tensors])

    return BatchedDataDict(
        {
            "input_ids": padded([row.token_ids for row in rows], torch.int64),
            "input_lengths": torch.tensor(lengths),
            "generation_logprobs": padded([row.logprobs for row in rows], torch.float32),
            "token_mask": padded([row.mask for row in rows], torch.int64),
            "sample_mask": sample_mask.clone(),
        }
    )


def filled_up(data: Any, multiple: int) -> Any:
    """Data with its shortest row again and again behind it, up to a multiple of rows."""
    rows = len(data["input_lengths"])
    more = _up(rows, multiple) - rows
    return data.select_indices([*range(rows), *[_shortest(data)] * more])


def joined(
    data: Any, others: Any, owners: torch.Tensor, update_rows: int, multiple: int
) -> tuple[Any, int]:
    """The data of an update with other sequences in it.

    Args:
        data: NeMo-RL's, of one row a rollout; left unchanged.
        others: of the other sequences, without advantages: they get their rollouts'.
        owners: int64 [others]: the row of each one's rollout.
        update_rows: NeMo-RL's rows of an optimizer step.
        multiple: see `updates`.

    Returns:
        All rows, and how many are an optimizer step now.
    """
    # The first token is no answer's, so its advantage is none that NeMo-RL overwrites for one.
    advantages = data["advantages"][owners, :1].expand(others["input_ids"].shape)
    more = {**others, "advantages": advantages}
    whole = type(data).from_batches(
        [data, {name: more[name].to(value.dtype) for name, value in data.items()}]
    )
    steps = updates(len(data["input_lengths"]), owners.tolist(), update_rows, multiple)
    order = torch.tensor(steps).flatten()
    filling = order == PADDING
    whole = whole.select_indices(torch.where(filling, _shortest(whole), order))
    for name in ("sample_mask", "token_mask"):
        whole[name][filling] = 0
    return whole, len(steps[0])


def _shortest(data: Any) -> int:
    return int(data["input_lengths"].argmin())


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
