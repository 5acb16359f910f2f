"""A verl dataset that reads Gym rows as they are: JSON lines, or Parquet with a text column.

Rows of raw fields get their prompts by a prompt config, once, before anything else. Every key of a
row travels to the reward untouched, as the row's own JSON text: a tensor container, or a Parquet
schema, would turn nested lists and nulls into something else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from omegaconf import DictConfig, ListConfig
from torch.utils.data import Dataset

from rlbridge.errors import ConfigError
from rlbridge.prompts import PromptConfig
from rlbridge.rows import messages_of, prompted, read_rows, tools_of
from rlbridge_verl.mixture import mixed
from rlbridge_verl.settings import GYM_ROW, SPLIT, environment_of

WEIGHTS = "nemo_gym_weights"
"""Key of verl's `data` section: one weight a training file."""
PROMPT = "nemo_gym_prompt"
"""Key of verl's `data` section: a prompt config for all files, or one (or null) a training file."""


class NeMoGymDataset(Dataset[dict[str, Any]]):
    """Gym rows for verl: `data.custom_cls.path=pkg://rlbridge_verl`.

    Each item holds `raw_prompt` (chat messages), `extra_info` (`gym_row`, the row's JSON text;
    `gym_split`; `index`), `data_source` (the agent's name), `index`, `reward_model` (with no
    ground truth: the row has it) and `dummy_tensor` (verl's batch size comes from a tensor).

    Args:
        data_files: one path or several; `.parquet` files hold each row's JSON text in a column
            `gym_row`.
        tokenizer: the policy's; counts prompt tokens.
        config: verl's `data` section; `+data.nemo_gym_weights` mixes several files by weight,
            `+data.nemo_gym_prompt` makes prompts of raw fields (validation files take the first
            training file's).
        processor: unused, text only.
        max_samples: keep so many rows of each file; negative keeps all.

    Raises:
        ConfigError: a file is missing or empty, a line is no JSON object, has no prompt, has one
            already where a prompt config is to make it, or its prompt is longer than
            `data.max_prompt_length` tokens.
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
        limit = max_samples if max_samples >= 0 else None
        files = [
            prompted(_read(Path(path), limit), prompt)
            for path, prompt in zip(paths, self._prompts(len(paths), config), strict=True)
        ]
        _check_prompts(files, tokenizer, config)
        weights = list(config.get(WEIGHTS) or ()) if self._split == "train" else []
        self._rows = mixed(files, weights)

    def _prompts(self, files: int, config: DictConfig) -> list[PromptConfig | None]:
        given = config.get(PROMPT)
        names = list(given) if isinstance(given, list | ListConfig) else [given] * files
        if self._split == "validation":
            names = names[:1] * files
        if len(names) != files:
            raise ConfigError(
                f"data.{PROMPT}: {len(names)} prompts for {files} training files; give each file "
                "one (or null), or one for all"
            )
        return [PromptConfig.load(name) if name else None for name in names]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        where, row = self._rows[index]
        return {
            "raw_prompt": messages_of(row, where),
            "extra_info": {
                GYM_ROW: orjson.dumps(row).decode(),
                SPLIT: self._split,
                "index": index,
            },
            "data_source": environment_of(row),
            "reward_model": {"style": "rule", "ground_truth": None},
            "index": index,
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
        }


def _read(path: Path, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    if path.suffix != ".parquet":
        return read_rows(path, limit)
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ConfigError(f"can't read the rows {path}: {error}") from error
    if GYM_ROW not in table.column_names:
        raise ConfigError(
            f"{path} has no column {GYM_ROW!r}; write each Gym row's JSON text there: columns of "
            "their own would turn nulls and nested lists into something else"
        )
    texts = table.column(GYM_ROW).slice(0, limit).to_pylist()
    return [(f"{path}:{number}", orjson.loads(text)) for number, text in enumerate(texts, start=1)]


def _check_prompts(files: Any, tokenizer: Any, config: DictConfig) -> None:
    limit = int(config.get("max_prompt_length", 1024))
    options = config.get("apply_chat_template_kwargs") or {}
    for where, row in (item for rows in files for item in rows):
        length = len(
            tokenizer.apply_chat_template(
                messages_of(row, where),
                tools=tools_of(row, where) or None,
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
                **options,
            )
        )
        if length > limit:
            raise ConfigError(
                f"{where}: the prompt has {length} tokens, more than data.max_prompt_tokens "
                f"({limit}); raise it or drop the row"
            )


def _split(paths: Sequence[str], config: DictConfig) -> str:
    """Which of verl's two datasets this is; verl itself doesn't say."""

    def listed(name: str) -> list[str]:
        value = config.get(name) or []
        return list(value) if isinstance(value, list | ListConfig) else [value]

    validates = paths == listed("val_files") and paths != listed("train_files")
    return "validation" if validates else "train"
