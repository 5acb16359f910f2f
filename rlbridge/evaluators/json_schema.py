"""Answers that are JSON of a given schema, checked by the jsonschema library.

The answer is the last fenced block, or the whole text. Runs in a process with limits: a schema's
`pattern` backtracks over what a policy wrote. Refuses schemas that fetch others from elsewhere.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import model_validator

from rlbridge.evaluators.answers import last_fenced
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.evaluators.local import (
    AnswerOptions,
    Grade,
    LocalEvaluator,
    RowFields,
    UngradableError,
)
from rlbridge.evaluators.workers import WorkerLimits, Workers

MAX_CHARS: Final = 200_000


class JsonSchemaOptions(AnswerOptions, WorkerLimits):
    """What to check."""

    json_schema: dict[str, Any] | None = None
    """The schema for all rows; a row's own comes first."""
    extract: Literal["auto", "fenced", "whole"] = "auto"
    """`fenced`: the last fenced block; `whole`: all of the answer; `auto`: the block if any."""
    formats: bool = False
    """Check `format` (date, email, ...), too."""


class JsonSchemaRow(RowFields):
    """A row with a schema, or for the schema of the options."""

    schema_str: str | None = None
    """The schema as JSON in a string, as in NeMo Gym's structured_outputs rows."""
    json_schema: dict[str, Any] | None = None
    """The schema as an object."""

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        if self.schema_str is not None and self.json_schema is not None:
            raise ValueError("schema_str and json_schema are two schemas; leave one out")
        if self.schema_str is not None and not isinstance(_loads(self.schema_str), dict):
            raise ValueError("schema_str holds no JSON object")
        return self


def make(options: Mapping[str, Any]) -> Evaluator:
    """The evaluator with `JsonSchemaOptions`."""
    how = JsonSchemaOptions.parse(options, where="json_schema")
    workers = Workers(f"{__name__}:conforms", how)

    async def grade(row: JsonSchemaRow, text: str) -> Grade:
        schema = row.json_schema
        if row.schema_str is not None:
            schema = _loads(row.schema_str)
        if schema is None:
            schema = how.json_schema
        if schema is None:
            raise UngradableError("$.json_schema is missing, and the options have none")
        answer = None if how.extract == "whole" else last_fenced(text, ("json",))
        if answer is None and how.extract != "fenced":
            answer = text
        if answer is None or len(answer) > MAX_CHARS:
            return Grade(0.0, components={"parsed": 0.0})
        parsed, valid = await workers.call(schema=schema, answer=answer, formats=how.formats)
        return Grade(float(valid), answer.strip() or None, {"parsed": float(parsed)})

    return LocalEvaluator(JsonSchemaRow, how, grade_async=grade, aclose=workers.aclose)


def conforms(schema: dict[str, Any], answer: str, formats: bool) -> tuple[bool, bool]:
    """Whether `answer` is JSON, and whether it fits. Runs in a worker."""
    import jsonschema
    from referencing import Registry

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UngradableError(f"the schema is wrong: {error.message[:200]}") from error
    try:
        value = json.loads(answer, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return False, False
    checker = kind.FORMAT_CHECKER if formats else None
    # An empty registry: a $ref to somewhere else finds nothing, and fetches nothing.
    validator = kind(schema, registry=Registry(), format_checker=checker)
    try:
        return True, bool(validator.is_valid(value))
    except jsonschema.exceptions._WrappedReferencingError as error:
        raise UngradableError(f"the schema refers to what isn't in it: {error}"[:200]) from error
    except RecursionError:
        return True, False


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that is there twice means different things to different readers."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


SPEC: Final = EvaluatorSpec(
    name="json_schema",
    summary="the answer is JSON that fits a schema, the row's or the options'",
    make=make,
    row=JsonSchemaRow,
    options=JsonSchemaOptions,
    requires=("jsonschema",),
    install="pip install 'rlbridge[evaluators]'",
)
