"""Python programs, run against tests in a sandbox. Refuses to run them anywhere else.

The verdict is formed outside the sandbox, from output alone. What is expected never comes in:
printing, exiting, patching and overloading `==` in there can't make a wrong answer right.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from rlbridge.contracts.reward import FailureClass
from rlbridge.errors import ConfigError
from rlbridge.evaluators.answers import last_fenced
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.evaluators.launcher import Limits
from rlbridge.evaluators.local import (
    AnswerOptions,
    Grade,
    LocalEvaluator,
    RowFields,
    UngradableError,
)
from rlbridge.evaluators.sandbox import End, Sandboxed, require
from rlbridge.evaluators.sandbox_calls import encode

MAX_CHARS: Final = 200_000
_FAULTLESS: Final = {End.OVERLOADED: FailureClass.TIMEOUT, End.BROKEN: FailureClass.SERVER_ERROR}
_CALLS: Final = Path(__file__).with_name("sandbox_calls.py").read_text(encoding="utf-8")
_TESTS: Final = Path(__file__).with_name("sandbox_tests.py").read_text(encoding="utf-8")


class CodeOptions(AnswerOptions, Limits):
    """What a program may use, and how tests become a reward."""

    reward: Literal["all", "fraction"] = "all"
    """`all`: 1.0 if every test passes, stopping at the first that fails; `fraction`: how many."""
    require_fence: bool = True
    """The program is the last fenced block; if false and there is none, the whole answer."""
    parallel: int = Field(default=2, ge=1)
    """Answers judged at the same time."""
    packages: Path | None = None
    """A folder of packages that programs may import, read-only; else the standard library."""


class UnitTests(RowFields):
    """Tests as NeMo Gym's code_gen and LiveCodeBench have them, or test code with asserts."""

    inputs: list[str] = Field(default_factory=list)
    """One a test: standard input; with `fn_name`, a JSON argument a line."""
    outputs: list[str] = Field(default_factory=list)
    """Standard output, or with `fn_name` the returned value as JSON."""
    fn_name: str | None = None
    """Call this function, or this method of a class Solution, instead of running the program."""
    code: str | None = None
    """Test code that calls the program's functions and raises if one is wrong."""
    entry_point: str | None = None
    """With `code`: the function that is given to its `check(candidate)`, if it has one."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.code is None) == (not self.inputs):
            raise ValueError("needs either inputs and outputs, or code")
        if len(self.inputs) != len(self.outputs):
            raise ValueError(f"{len(self.inputs)} inputs, but {len(self.outputs)} outputs")
        if self.code is not None and not self.code.strip():
            raise ValueError("code is empty: everything would pass")
        return self

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.fn_name is not None:
            for index, (given, wanted) in enumerate(zip(self.inputs, self.outputs, strict=True)):
                try:
                    arguments_of(given)
                    json.loads(wanted)
                except ValueError as error:
                    raise ValueError(f"test {index} is no JSON: {error}") from error
        return self


class VerifierMetadata(RowFields):
    """Where the tests are."""

    unit_tests: UnitTests
    """The tests."""


class CodeRow(RowFields):
    """A row of NeMo Gym's code_gen, or with test code in the same place."""

    verifier_metadata: VerifierMetadata
    """`{"unit_tests": {...}}`."""


def make(options: Mapping[str, Any]) -> Evaluator:
    """The evaluator with `CodeOptions`.

    Raises:
        ConfigError: an option is wrong, or there can be no sandbox here.
    """
    how = CodeOptions.parse(options, where="code")
    if how.packages is not None and not how.packages.is_dir():
        raise ConfigError(f"code: packages: {how.packages} is no folder")
    require()
    judge = _Judge(how)
    return LocalEvaluator(CodeRow, how, grade_async=judge.grade, aclose=judge.aclose)


def program_in(text: str, *, require_fence: bool) -> str | None:
    """The program of an answer; None if there is none."""
    program = last_fenced(text, ("python", "py", "python3"))
    if program is None and not require_fence:
        program = text
    return None if program is None or not program.strip() or len(program) > MAX_CHARS else program


def arguments_of(given: str) -> list[Any]:
    """A test's arguments: a JSON value a line."""
    return [json.loads(line) for line in given.splitlines() if line.strip()]


class _Judge:
    """Runs tests in threads, each of which waits for a sandbox."""

    def __init__(self, how: CodeOptions) -> None:
        self._how = how
        self._limits = Limits(**{name: getattr(how, name) for name in Limits.model_fields})
        self._threads: ThreadPoolExecutor | None = None
        self._pid = 0

    async def grade(self, row: CodeRow, text: str) -> Grade:
        program = program_in(text, require_fence=self._how.require_fence)
        if program is None:
            return Grade(0.0)
        if self._threads is None or self._pid != os.getpid():
            self._threads = ThreadPoolExecutor(self._how.parallel, "rlbridge-code")
            self._pid = os.getpid()
        loop = asyncio.get_running_loop()
        tests = row.verifier_metadata.unit_tests
        return await loop.run_in_executor(self._threads, self._run, program, tests)

    async def aclose(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None and self._pid == os.getpid():
            await asyncio.to_thread(threads.shutdown, wait=True)

    def _run(self, program: str, tests: UnitTests) -> Grade:
        if tests.code is not None:
            passed, count = float(self._asserted(program, tests)), 1
        else:
            one = self._printed if tests.fn_name is None else self._returned
            count, passed = len(tests.inputs), 0.0
            for given, wanted in zip(tests.inputs, tests.outputs, strict=True):
                if one(program, tests, given, wanted):
                    passed += 1
                elif self._how.reward == "all":
                    break
        share = passed / count
        if self._how.reward == "fraction":
            return Grade(share, program, {"passed": share})
        return Grade(float(passed == count), program)

    def _printed(self, program: str, tests: UnitTests, given: str, wanted: str) -> bool:
        with self._sandboxed(["solution.py"], {"solution.py": program}) as running:
            output = running.run(given.encode("utf-8", "surrogatepass"))
            _blame(running)
            if running.end is not End.EXITED:
                return False
        return _lines(output.decode("utf-8", "replace")) == _lines(wanted)

    def _returned(self, program: str, tests: UnitTests, given: str, wanted: str) -> bool:
        call = {"call": tests.fn_name, "arguments": encode(arguments_of(given))}
        with self._serving(program) as running:
            answer = running.ask(json.dumps(call).encode())
            _blame(running)
        return returned(answer, json.loads(wanted))

    def _asserted(self, program: str, tests: UnitTests) -> bool:
        """Test code in one sandbox, the program in another, and us between them."""
        files = {"tests.py": tests.code or "", "main.py": _TESTS, "sandbox_calls.py": _CALLS}
        arguments = ["main.py", tests.entry_point or ""]
        with self._sandboxed(arguments, files) as asking, self._serving(program) as running:
            question = asking.ask(None)
            while question is not None:
                verdict = _verdict_in(question)
                if verdict is not None:
                    return verdict
                answer = running.ask(question)
                _blame(running)
                if answer is None:
                    return False
                question = asking.ask(answer)
            _blame(asking)
            raise UngradableError(f"the row's test code {asking.end}")

    def _serving(self, program: str) -> Sandboxed:
        return self._sandboxed(["main.py"], {"solution.py": program, "main.py": _CALLS})

    def _sandboxed(self, arguments: list[str], files: Mapping[str, str]) -> Sandboxed:
        return Sandboxed(arguments, files, self._limits, self._how.packages)


def _blame(running: Sandboxed) -> None:
    """No verdict where the machine failed and not the program."""
    if running.end in _FAULTLESS:
        why = f": {running.why}" if running.why else ""
        raise UngradableError(f"the program {running.end}{why}", _FAULTLESS[running.end])


def _verdict_in(line: bytes) -> bool | None:
    """The verdict in a line of the test process; None if it asks something."""
    try:
        told = json.loads(line)
    except ValueError as error:
        raise UngradableError("the row's test code writes where it may not") from error
    return told["verdict"] == {"passed": True} if "verdict" in told else None


def returned(answer: bytes | None, wanted: Any) -> bool:
    """Whether a line that a solution sent, which may be anything at all, holds `wanted`."""
    try:
        return matches(json.loads(answer or b"null")["value"], wanted)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False


def matches(value: Any, wanted: Any) -> bool:
    """Whether `sandbox_calls.encode` wrote what equals `wanted`, which came from JSON.

    A tuple is a list, 1 is 1.0, but True is not 1. Nothing of the value is hashed but text: with
    numbers one can choose keys that all collide.
    """
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "int":
            return matches(int(inner, 16), wanted)
        if kind == "tuple":
            return matches(list(inner), wanted)
        if kind != "dict" or not isinstance(wanted, dict) or len(inner) != len(wanted):
            return False
        parts = {_key(key): part for key, part in inner}
        return parts.keys() == wanted.keys() and all(matches(parts[k], wanted[k]) for k in wanted)
    if isinstance(value, list):
        same = isinstance(wanted, list) and len(value) == len(wanted)
        return same and all(map(matches, value, wanted))
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, int | float):
        return isinstance(wanted, int | float) and value == wanted
    return type(value) is type(wanted) and bool(value == wanted)


def _key(key: Any) -> str:
    """A key as JSON has it."""
    if isinstance(key, str):
        return key
    return json.dumps(int(key["int"], 16) if isinstance(key, dict) else key)


def _lines(text: str) -> list[str]:
    """Lines without blanks at their ends, and none at the end of the text."""
    return [line.rstrip() for line in text.strip().splitlines()]


SPEC: Final = EvaluatorSpec(
    name="code",
    summary="the program in the answer passes tests, in a sandbox without network or files",
    make=make,
    row=CodeRow,
    options=CodeOptions,
)
