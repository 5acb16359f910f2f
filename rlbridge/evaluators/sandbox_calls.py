"""Runs inside the sandbox: loads `solution.py` and answers calls of its functions.

A script of its own, copied in beside the solution. One JSON line in, one out. Values cross as
plain data and nothing else: an object whose `__eq__` says yes to everything stays here. The
solution shares this process and may write what it likes to the pipe; it gains nothing, because
what is expected never comes in here.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    questions = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):  # what the solution prints is not read
        os.dup2(null, number)
    sys.setrecursionlimit(20_000)
    sys.path.insert(0, "/work")
    scope: dict[str, Any] = {"__name__": "solution"}
    problem = None
    try:
        with open("solution.py", encoding="utf-8", errors="surrogatepass") as source:
            exec(compile(source.read(), "solution.py", "exec"), scope)  # noqa: S102
    except BaseException as error:  # noqa: BLE001 (a SystemExit is a failure like any other)
        problem = type(error).__name__
    for line in questions:
        answer = {"raised": problem} if problem else _answer(scope, json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(scope: dict[str, Any], question: Any) -> dict[str, Any]:
    try:
        if question.get("names"):
            return {"value": encode([name for name in scope if callable(scope[name])])}
        function = _find(scope, question["call"])
        keywords = {name: decode(part) for name, part in question.get("keywords", {}).items()}
        result = function(*[decode(part) for part in question["arguments"]], **keywords)
        return {"value": encode(result)}
    except BaseException as error:  # noqa: BLE001
        return {"raised": type(error).__name__}


def _find(scope: dict[str, Any], name: str) -> Any:
    """The function, or the method of a class `Solution`, as is the custom of some tasks."""
    if name in scope:
        return scope[name]
    return getattr(scope["Solution"](), name)


def encode(value: Any, depth: int = 0) -> Any:
    """Plain data as JSON; `type` and not isinstance, since a subclass may lie."""
    if depth > 100:
        raise ValueError("nested too deeply")
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -(2**53) < value < 2**53 else {"int": hex(value)}
    if kind in (bytes, bytearray):
        return {"bytes": bytes(value).hex()}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is list:
        return [encode(part, depth + 1) for part in value]
    if kind is tuple:
        return {"tuple": [encode(part, depth + 1) for part in value]}
    if kind in (set, frozenset):
        return {"set": [encode(part, depth + 1) for part in value]}
    if isinstance(value, dict):  # Counter and defaultdict are dicts to whoever compares them
        pairs = [[encode(key, depth + 1), encode(value[key], depth + 1)] for key in value]
        return {"dict": pairs}
    raise TypeError(f"{kind.__name__} is no plain data")


def decode(value: Any, depth: int = 0) -> Any:
    """What `encode` wrote, as plain data; raises ValueError or TypeError for anything else."""
    if depth > 100:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [decode(part, depth + 1) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "int":
        return int(inner, 16)
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "complex":
        return complex(float(inner[0]), float(inner[1]))
    if kind == "dict":
        return {decode(key, depth + 1): decode(part, depth + 1) for key, part in inner}
    parts = [decode(part, depth + 1) for part in inner]
    if kind == "tuple":
        return tuple(parts)
    if kind == "set":
        return set(parts)
    raise ValueError(f"{kind!r} is no kind of value")


if __name__ == "__main__":
    main()
