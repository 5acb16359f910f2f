"""What docs/evaluators.md says of evaluators is there."""

from pathlib import Path

import pytest

from rlbridge.cli.plugins import options_of
from rlbridge.plugins import Plugins

TEXT = Path("docs/evaluators.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Plugins().evaluator_names())
def test_every_evaluator_is_in_the_table_and_explains_its_fields_and_options(name: str) -> None:
    spec = Plugins().evaluator_spec(name)
    assert f"| `{name}` |" in TEXT
    assert all(spec.fields.values())
    assert all(option.help for option in options_of(spec).values())
