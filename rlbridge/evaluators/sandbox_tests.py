"""Runs inside a sandbox of its own: the test code of a row, against a solution in another one.

A script of its own, copied in beside `tests.py` and `sandbox_calls.py`. The solution's functions
are here as stand-ins that send a call out and get plain data back, so the solution can neither
read the tests, nor end this process, nor return objects that equal everything.
"""

import builtins
import json
import os
import sys
from typing import Any

sys.path.insert(0, "/work")  # an isolated interpreter doesn't look beside the script

import sandbox_calls  # type: ignore[import-not-found]


def main() -> None:
    """Run the tests; the last line out is the verdict."""
    questions = os.fdopen(os.dup(1), "w", encoding="utf-8")
    answers = os.fdopen(os.dup(0), "r", encoding="utf-8")
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)

    def ask(question: dict[str, Any]) -> Any:
        questions.write(json.dumps(question) + "\n")
        questions.flush()
        answer = json.loads(answers.readline())
        if "raised" in answer:
            raise _exception(answer["raised"])
        return sandbox_calls.decode(answer["value"])

    verdict: dict[str, Any] = {"passed": False}
    try:
        entry_point = sys.argv[1]
        scope: dict[str, Any] = {"__name__": "__main__"}
        names = ask({"names": True})
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and not hasattr(builtins, name):
                scope[name] = _stand_in(ask, name)
        if entry_point:
            scope[entry_point] = scope["candidate"] = _stand_in(ask, entry_point)
        scope.pop("check", None)  # the tests' own, not the solution's
        with open("tests.py", encoding="utf-8") as source:
            exec(compile(source.read(), "tests.py", "exec"), scope)  # noqa: S102
        check = scope.get("check")
        if entry_point and callable(check):  # HumanEval's way
            check(scope["candidate"])
        verdict = {"passed": True}
    except BaseException as error:  # noqa: BLE001 (an assert, or what the solution raised)
        verdict["failed"] = type(error).__name__
    questions.write(json.dumps({"verdict": verdict}) + "\n")
    questions.flush()


def _stand_in(ask: Any, name: str) -> Any:
    def call(*arguments: Any, **keywords: Any) -> Any:
        return ask(
            {
                "call": name,
                "arguments": [sandbox_calls.encode(part) for part in arguments],
                "keywords": {key: sandbox_calls.encode(part) for key, part in keywords.items()},
            }
        )

    call.__name__ = name
    return call


def _exception(name: object) -> BaseException:
    """A builtin exception by name, so that tests of errors work; else a RuntimeError."""
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind("raised by the solution")
        except TypeError:  # UnicodeDecodeError wants more
            pass
    return RuntimeError("raised by the solution")


if __name__ == "__main__":
    main()
