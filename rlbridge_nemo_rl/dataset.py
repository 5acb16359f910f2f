"""NeMo-RL datasets of Gym JSON lines, nameable in YAML. Refuses rows without a prompt.

    data:
      train: {dataset_name: rlbridge_nemo_rl.GymDataset, data_path: train.jsonl}
      default: {env_name: rlbridge_gym}

`GymDataset` is for rollouts that NeMo-RL makes and our environment judges, `GymAgentDataset` for
NeMo-RL's own Gym path, where an agent rolls out. Both give rows of raw fields their prompts, by
`prompt`, once.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from nemo_rl.data import ResponseDatasetConfig
from nemo_rl.data.datasets.raw_dataset import RawDataset

from rlbridge.config import nearest
from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.prompts import MARK, PromptConfig
from rlbridge.rows import Row, agent_of, messages_of, read_rows, tools_of
from rlbridge_nemo_rl.agent_rewards import ORIGIN
from rlbridge_nemo_rl.processor import INDEX, MESSAGES, ROW, SPLIT, TOOLS, WHERE, process_row

_FILE = ("data_path", "weight", "prompt")
_OWN_TEMPLATES = ("prompt_file", "system_prompt_file")
_AGENT_PROCESSOR = "nemo_gym_data_processor"  # NeMo-RL's own


class GymDataset(RawDataset):  # type: ignore[misc,unused-ignore]
    """Gym rows for NeMo-RL's single- and multi-turn rollouts.

    Args:
        data_path: a file of Gym JSON lines.
        split: "train" or "validation", for the record of rewards.
        mix: further files, `{data_path, weight, prompt}`, whose rows are repeated until each
            file's share is its weight, where this one's is 1.
        prompt: prompt config for rows of raw fields: a YAML file, or a built-in's name.
        **kwargs: NeMo-RL hands every key of its section over; the rest is its own.

    Raises:
        ConfigError: the file is missing or empty, a row has no prompt, or has one already where
            `prompt` is to make it; with file and line. A key is unknown, or can't be honoured.
    """

    def __init__(
        self,
        data_path: str,
        split: str = "train",
        mix: Sequence[Mapping[str, Any]] | None = None,
        prompt: str | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_keys(kwargs, ("data_path", "split", "mix", "prompt"))
        self.task_name = _task_name(data_path, split)
        self._prompted: str | None = None
        files = [{"data_path": data_path, "prompt": prompt}, *(mix or ())]
        index = itertools.count()
        weighted = [
            ([self._item(*row, next(index), split) for row in _rows(file)], file.get("weight", 1.0))
            for file in files
        ]
        self.dataset = Dataset.from_list(shares(weighted))
        self.val_dataset = None

    def _item(self, where: str, row: Row, index: int, split: str) -> dict[str, Any]:
        if MARK in row and self._prompted is None:
            self._prompted = where
        agent_of(row, where)  # who judges it is looked up with each answer: too late to refuse it
        return {
            MESSAGES: json.dumps(messages_of(row, where)),
            TOOLS: json.dumps(tools_of(row, where)),
            ROW: json.dumps(row),
            INDEX: index,
            WHERE: where,
            SPLIT: split,
            "task_name": self.task_name,
        }

    def set_task_spec(self, data_config: Any) -> None:
        """Take NeMo-RL's own prompt files, if they don't come on top of a prompt config.

        Raises:
            ConfigError: they do, and rows would be templated twice.
        """
        named = [key for key in _OWN_TEMPLATES if data_config.get(key)]
        if named and self._prompted is not None:
            raise ConfigError(
                f"{self._prompted}: a prompt config made this row's prompt, and {named[0]} would "
                f"template it again; set {named[0]} to null, or take rows without {MARK}"
            )
        super().set_task_spec(data_config)

    def set_processor(self) -> None:
        """Always ours: another processor wouldn't know these items."""
        self.processor = process_row


class GymAgentDataset(RawDataset):  # type: ignore[misc,unused-ignore]
    """Rows for NeMo-RL's own Gym path, as its `NemoGymDataset` has them, checked and prompted.

    Args:
        data_path: a file of Gym JSON lines.
        split: "train" or "validation", for the record of rewards.
        mix: further files, as for `GymDataset`.
        agent: the agent (`agent_ref.name`) of rows that name none.
        prompt: prompt config for rows of raw fields: a YAML file, or a built-in's name.
        repeat: how often each row comes; for validation with several samples.
        **kwargs: NeMo-RL hands every key of its section over; the rest is its own.

    Raises:
        ConfigError: as `GymDataset`; or a row names no agent.
    """

    def __init__(
        self,
        data_path: str,
        split: str = "train",
        mix: Sequence[Mapping[str, Any]] | None = None,
        agent: str | None = None,
        prompt: str | None = None,
        repeat: int = 1,
        **kwargs: Any,
    ) -> None:
        _refuse_keys(kwargs, ("data_path", "split", "mix", "agent", "prompt", "repeat"))
        self.task_name = _task_name(data_path, split)
        index = itertools.count()
        weighted = [
            (
                [
                    json.dumps(row | {ORIGIN: {INDEX: next(index), WHERE: where, SPLIT: split}})
                    for where, row in _agent_rows(file, agent)
                ],
                float(file.get("weight", 1.0)),
            )
            for file in ({"data_path": data_path, "prompt": prompt}, *(mix or ()))
        ]
        rows = shares(weighted)
        self.dataset = Dataset.from_dict(
            {"extra_env_info": rows * repeat, "task_name": [self.task_name] * len(rows) * repeat}
        )
        self.val_dataset = None

    def set_task_spec(self, data_config: Any) -> None:
        """Take the section over.

        Raises:
            ConfigError: it names prompt files, which NeMo-RL doesn't apply on this path.
        """
        for key in _OWN_TEMPLATES:
            if data_config.get(key):
                raise ConfigError(
                    f"{key}: an agent makes its prompts of the rows, and NeMo-RL applies no prompt "
                    "file; set it to null and name a prompt config (`prompt`)"
                )
        super().set_task_spec(data_config)

    def set_processor(self) -> None:
        """NeMo-RL's own for these rows."""
        from nemo_rl.data.processors import PROCESSOR_REGISTRY

        self.processor = PROCESSOR_REGISTRY[_AGENT_PROCESSOR]


def shares(weighted: Sequence[tuple[list[Any], float]]) -> list[Any]:
    """Lists joined so that each one's share is its weight; each item is in it at least once."""
    # The length at which the list that is largest for its weight appears exactly once.
    unit = max(len(items) / weight for items, weight in weighted)
    joined: list[Any] = []
    for items, weight in weighted:
        joined += itertools.islice(itertools.cycle(items), max(len(items), round(unit * weight)))
    return joined


def gym_agent_rows(
    path: Path, agent: str | None = None, prompt: str | None = None
) -> Iterator[dict[str, Any]]:
    """Rows as NeMo-RL's Gym path takes them: `responses_create_params` and `agent_ref`.

    Args:
        path: Gym JSON lines.
        agent: the agent for rows that name none.
        prompt: prompt config for rows of raw fields.

    Raises:
        ConfigError: a row has no prompt, has one already where `prompt` is to make it, or names no
            agent.
    """
    for _, row in _agent_rows({"data_path": path, "prompt": prompt}, agent):
        yield row


def _agent_rows(file: Mapping[str, Any], agent: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in _rows(file):
        params = row.get(wire.RESPONSES_CREATE_PARAMS)
        # Any item will do: an agent may take what is no message.
        if not isinstance(params, Mapping) or not params.get("input"):
            raise ConfigError(
                f"{where}: $.responses_create_params.input is missing or empty; rows of raw "
                "fields need a prompt config (`prompt`)"
            )
        name = agent_of(row, where) or agent
        if name is None:
            raise ConfigError(
                f"{where}: $.agent_ref.name is missing, so nobody knows which agent is to roll "
                "out; add it, or name one agent for all rows"
            )
        ref = {"type": "responses_api_agents", **(row.get(wire.AGENT_REF) or {}), "name": name}
        yield where, {**row, wire.AGENT_REF: ref}


def _rows(file: Mapping[str, Any]) -> list[tuple[str, Row]]:
    if not {"data_path"} <= set(file) <= set(_FILE):
        raise ConfigError(f"data: a file has {', '.join(_FILE)}, not {', '.join(file)}")
    prompt = file.get("prompt")
    return read_rows(Path(file["data_path"]), prompt=PromptConfig.load(prompt) if prompt else None)


def _task_name(data_path: str, split: str) -> str:
    path = Path(data_path)
    return f"{split}-{path.parent.name}-{path.stem}".strip("-")


def _refuse_keys(given: Mapping[str, Any], ours: Sequence[str]) -> None:
    """Refuse misspelt keys, which NeMo-RL hands over with the rest, and one that we can't honour.

    Raises:
        ConfigError: naming the key.
    """
    if given.get("split_validation_size"):
        raise ConfigError(
            "split_validation_size: rlbridge's datasets aren't split; give validation rows a file "
            "of their own, in data.validation"
        )
    for key in given:
        if key not in ResponseDatasetConfig.__annotations__:
            guess = nearest(key, [*ours, *ResponseDatasetConfig.__annotations__])
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"data: unknown key {key!r} of a dataset of rlbridge's{hint}")
