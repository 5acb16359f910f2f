"""The tokenizer and rows of examples/counter_policy.py, for tests without a model."""

import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@functools.cache
def counter_policy() -> Any:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("counter_policy")
    finally:
        sys.path.remove(str(EXAMPLES))


@functools.cache
def tokenizer_of() -> Any:
    return counter_policy().make_tokenizer()


def call(count: int) -> str:
    arguments = json.dumps({"count": count})
    return f'<tool_call>{{"name": "increment_counter", "arguments": {arguments}}}</tool_call>'


def counter_row(first: int, second: int) -> dict[str, Any]:
    module = counter_policy()
    fields = {"initial_count": 0, "expected_count": first + second}
    row: dict[str, Any] = module.row(
        f"Add {first} then {second}.", module.COUNTER_TOOLS, "example_session_state_mgmt", **fields
    )
    return row
