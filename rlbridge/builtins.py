"""The evaluators that come with rlbridge, added by the same hook as anybody else's."""

from collections.abc import Mapping
from typing import Any

from rlbridge.config import GymConfig
from rlbridge.evaluators import (
    arithmetic,
    code,
    exact_match,
    json_schema,
    judge,
    mathematics,
    multiple_choice,
    regex,
)
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.hookspecs import hookimpl


def _make_gym(options: Mapping[str, Any]) -> Evaluator:
    from rlbridge.gym.client import GymClient

    return GymClient(GymConfig.parse(options, where="gym"))


GYM = EvaluatorSpec(
    name="gym",
    summary="a NeMo Gym resources server judges, by its /verify",
    make=_make_gym,
    fields={"*": "whatever that server reads; the row is sent whole"},
    options=GymConfig,
)


@hookimpl
def rlbridge_evaluators() -> list[EvaluatorSpec]:
    """Ours: graders, a sandbox for code, a judge, and any Gym server."""
    ours = (arithmetic, exact_match, multiple_choice, mathematics, regex, json_schema, code, judge)
    return [*(module.SPEC for module in ours), GYM]
