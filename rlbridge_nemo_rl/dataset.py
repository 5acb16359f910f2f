"""A NeMo-RL dataset of Gym JSON lines, nameable in YAML. Refuses rows without a prompt.

    data:
      train: {dataset_name: rlbridge_nemo_rl.GymDataset, data_path: train.jsonl}
      default: {env_name: rlbridge_gym}

`gym_agent_rows` makes the rows of NeMo-RL's own Gym path, where an agent rolls out.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from nemo_rl.data.datasets.raw_dataset import RawDataset

from rlbridge.contracts import wire
from rlbridge.errors import ConfigError
from rlbridge.rows import messages_of, read_rows, tools_of
from rlbridge_nemo_rl.processor import INDEX, MESSAGES, ROW, SPLIT, TOOLS, process_row


class GymDataset(RawDataset):  # type: ignore[misc,unused-ignore]
    """Gym rows for NeMo-RL's single- and multi-turn rollouts.

    Args:
        data_path: a file of Gym JSON lines.
        split: "train" or "validation", for the record of rewards.
        mix: further files, `{data_path, weight}`, whose rows are repeated until each file's share
            is its weight, where this one's is 1.
        **kwargs: NeMo-RL hands every key of its section over; the rest is its own.

    Raises:
        ConfigError: the file is missing or empty, or a row has no prompt; with file and line.
    """

    def __init__(
        self,
        data_path: str,
        split: str = "train",
        mix: Sequence[Mapping[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        path = Path(data_path)
        self.task_name = f"{split}-{path.parent.name}-{path.stem}".strip("-")
        weighted = [(path, 1.0)]
        weighted += [(Path(str(other["data_path"])), float(other["weight"])) for other in mix]
        self.dataset = Dataset.from_list(
            shares([(self._items(file, split), weight) for file, weight in weighted])
        )
        self.val_dataset = None

    def _items(self, path: Path, split: str) -> list[dict[str, Any]]:
        return [
            {
                MESSAGES: json.dumps(messages_of(row, where)),
                TOOLS: json.dumps(tools_of(row)),
                ROW: json.dumps(row),
                INDEX: index,
                SPLIT: split,
                "task_name": self.task_name,
            }
            for index, (where, row) in enumerate(read_rows(path))
        ]

    def set_processor(self) -> None:
        """Always ours: another processor wouldn't know these items."""
        self.processor = process_row


def shares(weighted: Sequence[tuple[list[Any], float]]) -> list[Any]:
    """Lists joined so that each one's share is its weight; each item is in it at least once."""
    # The length at which the list that is largest for its weight appears exactly once.
    unit = max(len(items) / weight for items, weight in weighted)
    joined: list[Any] = []
    for items, weight in weighted:
        joined += itertools.islice(itertools.cycle(items), max(len(items), round(unit * weight)))
    return joined


def gym_agent_rows(path: Path, agent: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows as NeMo-RL's Gym path takes them: `responses_create_params` and `agent_ref`.

    Args:
        path: Gym JSON lines.
        agent: the agent for rows that name none.

    Raises:
        ConfigError: a row has no prompt, or no agent.
    """
    for where, row in read_rows(path):
        messages_of_agent(row, where)
        ref = row.get(wire.AGENT_REF) or ({"name": agent} if agent else None)
        if not isinstance(ref, Mapping) or not ref.get("name"):
            raise ConfigError(
                f"{where}: $.agent_ref.name is missing, so nobody knows which agent is to roll "
                "out; add it, or name one agent for all rows"
            )
        yield {**row, wire.AGENT_REF: {"type": "responses_api_agents", **ref}}


def messages_of_agent(row: Mapping[str, Any], where: str) -> None:
    """See that a row has an input at all; an agent may take items that are no messages.

    Raises:
        ConfigError: it has none.
    """
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    if not isinstance(params, Mapping) or not params.get("input"):
        raise ConfigError(f"{where}: $.responses_create_params.input is missing or empty")
