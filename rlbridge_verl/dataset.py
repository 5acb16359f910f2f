"""A verl dataset that reads Gym JSON lines as they are. No hand-made Parquet.

Every key of a row travels to the reward untouched, as the row's own JSON text: a tensor
container would turn nested lists and nulls into something else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from omegaconf import DictConfig, ListConfig
from torch.utils.data import Dataset

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.rows import messages_of, read_rows

GYM_ROW = "gym_row"
"""The column that holds a row's JSON text."""
SPLIT = "gym_split"
"""The column that says "train" or "validation"."""


class NeMoGymDataset(Dataset[dict[str, Any]]):
    """Rows of Gym JSON lines for verl: `data.custom_cls.path=pkg://rlbridge_verl`.

    Each item holds `raw_prompt` (chat messages), `gym_row` (JSON text), `data_source` (the
    agent's name), `index`, `gym_split` and `dummy_tensor` (verl's batch size comes from a tensor).

    Args:
        data_files: one path or several.
        tokenizer: the policy's; counts prompt tokens.
        config: verl's `data` section.
        processor: unused, text only.
        max_samples: keep so many rows; negative keeps all.

    Raises:
        ConfigError: a file is missing or empty, a line is no JSON object, has no prompt, or its
            prompt is longer than `data.max_prompt_length` tokens.
    """

    def __init__(
        self,
        data_files: str | Sequence[str],
        tokenizer: Any,
        config: DictConfig,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        given: list[Any] = [data_files] if isinstance(data_files, str) else list(data_files)
        paths = [str(path) for path in given]
        self._split = _split(paths, config)
        self._rows = [row for path in paths for row in read_rows(Path(path))]
        if max_samples >= 0:
            self._rows = self._rows[:max_samples]
        limit = int(config.get("max_prompt_length", 1024))
        for index, (where, row) in enumerate(self._rows):
            length = len(
                tokenizer.apply_chat_template(
                    messages_of(row, where),
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=False,
                )
            )
            if length > limit:
                raise ConfigError(
                    f"{where}: the prompt has {length} tokens, more than data.max_prompt_tokens "
                    f"({limit}); raise it or drop row {index}"
                )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where, row = self._rows[index]
        agent = row.get(wire.AGENT_REF) or {}
        return {
            "raw_prompt": messages_of(row, where),
            GYM_ROW: orjson.dumps(row).decode(),
            "data_source": str(agent.get("name", "nemo_gym")),
            "index": index,
            SPLIT: self._split,
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
        }


def _split(paths: Sequence[str], config: DictConfig) -> str:
    """Which of verl's two datasets this is; verl itself doesn't say."""

    def listed(name: str) -> list[str]:
        value = config.get(name) or []
        return list(value) if isinstance(value, list | ListConfig) else [value]

    validates = paths == listed("val_files") and paths != listed("train_files")
    return "validation" if validates else "train"
