"""NeMo-RL datasets of what `rlbridge transform sft` and `dpo` make, and their processors.

Nameable in YAML by dotted path. A processor refuses, with file and line, what can't be trained on;
NeMo-RL's own would mask it and go on.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from nemo_rl.data.datasets.raw_dataset import RawDataset

from rlbridge.errors import ConfigError
from rlbridge_nemo_rl.offline_rows import conversations, pairs
from rlbridge_nemo_rl.rendering import Piece, Rendered, Renderer

# Keys of an item; messages and tools travel as JSON text: a table would put nulls into them.
TASK, WHERE, TOOLS = "task_name", "where", "tools"
MESSAGES, CHOSEN, REJECTED = "messages", "chosen", "rejected"
CHANGED = "changed_turns"
"""In a processed row: assistant's turns that are context only."""


class ConversationDataset(RawDataset):  # type: ignore[misc,unused-ignore]
    """Conversations for SFT.

    Args:
        data_path: JSON lines, `{messages, tools?}` or `{input, output}`.
        **kwargs: NeMo-RL hands every key of its section over; the rest is its own.

    Raises:
        ConfigError: a row is no conversation, or a prompt file is set.
    """

    def __init__(self, data_path: str, **kwargs: Any) -> None:
        _refuse_prompt_files(kwargs)
        self.task_name = _task_name(data_path)
        self.dataset = Dataset.from_list(
            [
                {
                    TASK: self.task_name,
                    WHERE: row.where,
                    MESSAGES: json.dumps(row.messages),
                    TOOLS: json.dumps(row.tools),
                }
                for row in conversations(Path(data_path))
            ]
        )
        self.val_dataset = None

    def set_processor(self) -> None:
        """Always ours: another processor wouldn't know these items."""
        self.processor = process_conversation


class PairDataset(RawDataset):  # type: ignore[misc,unused-ignore]
    """Preference pairs for DPO.

    Args:
        data_path: JSON lines, `{prompt, chosen, rejected}` or `{context, completions}`.
        **kwargs: the rest of NeMo-RL's section.

    Raises:
        ConfigError: a row is no pair, or a prompt file is set.
    """

    def __init__(self, data_path: str, **kwargs: Any) -> None:
        _refuse_prompt_files(kwargs)
        self.task_name = _task_name(data_path)
        self.dataset = Dataset.from_list(
            [
                {
                    TASK: self.task_name,
                    WHERE: row.where,
                    CHOSEN: json.dumps(row.chosen),
                    REJECTED: json.dumps(row.rejected),
                    TOOLS: json.dumps(row.tools),
                }
                for row in pairs(Path(data_path))
            ]
        )


def process_conversation(
    datum_dict: Mapping[str, str],
    task_data_spec: Any,
    tokenizer: Any,
    max_seq_length: int,
    idx: int,
    **kwargs: Any,
) -> dict[str, Any]:
    """An item of `ConversationDataset` as a `DatumSpec`.

    Args:
        datum_dict: the item.
        task_data_spec: NeMo-RL's; not used.
        tokenizer: the policy's.
        max_seq_length: longest conversation in tokens.
        idx: the item's index.
        **kwargs: `add_bos` and its like, of NeMo-RL's own processor; the template decides here.

    Returns:
        Its `message_log` has role `assistant` on sampled pieces alone, which is what `sft_train`
        puts its loss on.

    Raises:
        ConfigError: it is too long, or the template refuses it; with file and line.
    """
    made = _rendered(datum_dict, MESSAGES, tokenizer, max_seq_length)
    return {
        "message_log": _log(made.pieces),
        "length": _length(made.pieces),
        "extra_env_info": None,
        "loss_multiplier": 1.0,
        "idx": idx,
        CHANGED: made.changed_turns,
    }


def process_pair(
    datum_dict: Mapping[str, str],
    task_data_spec: Any,
    tokenizer: Any,
    max_seq_length: int,
    idx: int,
) -> dict[str, Any]:
    """An item of `PairDataset` as a `PreferenceDatumSpec`; arguments as above.

    Returns:
        Both message logs end with the answer, which is what `dpo_train` puts its loss on.

    Raises:
        ConfigError: a side is too long, or the template refuses it; with file and line.
    """
    chosen, rejected = (
        _rendered(datum_dict, side, tokenizer, max_seq_length).pieces for side in (CHOSEN, REJECTED)
    )
    return {
        "message_log_chosen": _log(chosen),
        "message_log_rejected": _log(rejected),
        "length_chosen": _length(chosen),
        "length_rejected": _length(rejected),
        "loss_multiplier": 1.0,
        "idx": idx,
    }


def _rendered(item: Mapping[str, str], side: str, tokenizer: Any, limit: int) -> Rendered:
    try:
        made = _renderer(tokenizer).render(json.loads(item[side]), json.loads(item[TOOLS]))
    except ConfigError as error:
        raise ConfigError(f"{item[WHERE]}: {error}") from error
    if _length(made.pieces) > limit:
        raise ConfigError(
            f"{item[WHERE]}: {_length(made.pieces)} tokens, and data.max_prompt_tokens + "
            f"rollout.max_response_tokens is {limit}"
        )
    return made


@functools.lru_cache(maxsize=1)
def _renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


def _log(pieces: list[Piece]) -> list[dict[str, Any]]:
    return [
        {
            "role": "assistant" if piece.sampled else "user",
            "content": piece.text,
            "token_ids": torch.tensor(piece.token_ids, dtype=torch.int64),
        }
        for piece in pieces
    ]


def _length(pieces: list[Piece]) -> int:
    return sum(len(piece.token_ids) for piece in pieces)


def _task_name(data_path: str) -> str:
    path = Path(data_path)
    return f"{path.parent.name}-{path.stem}".strip("-")


def _refuse_prompt_files(section: Mapping[str, Any]) -> None:
    for name in ("prompt_file", "system_prompt_file"):
        if section.get(name):
            raise ConfigError(f"data.{name}: these rows hold their whole prompt; remove it")
