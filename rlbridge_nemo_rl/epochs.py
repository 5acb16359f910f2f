"""A data loader that starts over. Unpickled where async GRPO collects: imports nothing.

NeMo-RL 0.7's collector goes through its loader once, whatever `grpo.max_num_epochs` says, and
then its trainer waits for ever. Refuses a loader that has no batch, which would spin.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Epochs:
    """The batches of a loader, again and again; whoever iterates decides when it is enough.

    Args:
        loader: NeMo-RL's; shuffles anew each time if it does at all.
        begun: a file to leave when the first batch is asked for.
    """

    def __init__(self, loader: Any, begun: Path) -> None:
        self._loader = loader
        self._begun = begun

    def __iter__(self) -> Iterator[Any]:
        self._begun.touch()
        barren = 0
        while barren < 2:  # a loader that was resumed at an epoch's end has one empty pass
            barren += 1
            for batch in self._loader:
                barren = 0
                yield batch
        raise ValueError(
            "the training data have fewer rows than rollout.prompts_per_step, so there is no "
            "whole batch"
        )

    def __len__(self) -> int:
        """Batches of one epoch."""
        return len(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Of the loader itself, which is what NeMo-RL restores on resuming."""
        state: dict[str, Any] = self._loader.state_dict()
        return state
