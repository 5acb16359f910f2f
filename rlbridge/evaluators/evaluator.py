"""What an evaluator is: a row and an answer in, a reward out. `GymClient` is one, too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel

from rlbridge.contracts.reward import Reward


class Evaluator(Protocol):
    """Judges answers. A row nobody can judge is an invalid reward, never 0.0 and never a raise."""

    async def verify(self, row: Mapping[str, Any], response: object) -> Reward:
        """The reward of one answer.

        Args:
            row: a Gym row: `responses_create_params` and the fields this evaluator reads.
            response: a Responses object, a list of its output items, or the answer's text, as
                `rlbridge.gym.GymClient.verify` takes it.
        """
        ...

    async def aclose(self) -> None:
        """Give back processes and connections."""
        ...


@dataclass(frozen=True, slots=True)
class EvaluatorSpec:
    """An evaluator that a plugin adds.

    Attributes:
        name: what users write in a config, in `--evaluator` and after `rlbridge gym serve`.
        summary: one line for `rlbridge plugins`.
        make: builds one from the options users gave; raises `ConfigError` on a wrong option.
        fields: the row's fields it reads, by name, with a word on each; by default those of `row`.
        row: a model of these fields, where there is one; a served evaluator answers 422 for a row
            that doesn't fit, as NeMo Gym does.
        options: the model of what `make` takes, where there is one; for help texts.
        requires: import names that must be found for `make` to work.
        install: the command that installs what `requires` names.
    """

    name: str
    summary: str
    make: Callable[[Mapping[str, Any]], Evaluator]
    fields: Mapping[str, str] = field(default_factory=dict)
    row: type[BaseModel] | None = None
    options: type[BaseModel] | None = None
    requires: tuple[str, ...] = ()
    install: str = ""

    def __post_init__(self) -> None:
        if self.row is not None and not self.fields:
            infos = self.row.model_fields.items()
            described = {name: info.description or "" for name, info in infos}
            object.__setattr__(self, "fields", described)
