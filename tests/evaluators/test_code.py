"""The code evaluator: what passes, and every trick that must not."""

from typing import Any

import pytest

from rlbridge.contracts.reward import FailureClass, Reward
from rlbridge.evaluators.code import matches, returned
from tests.evaluators.verdicts import judged, value

pytestmark = pytest.mark.usefixtures("sandbox")

PRINTED = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"]}
CALLED = {"inputs": ["1\n2", "[1]\n[2]"], "outputs": ["3", "[1, 2]"], "fn_name": "add"}
ASSERTED = {
    "code": (
        "def check(candidate):\n"
        "    assert candidate(1, 2) == 3\n"
        "    assert candidate([1], [2]) == [1, 2]\n"
        "    assert isinstance(candidate((1,), (2,)), tuple)\n"
        "    try: candidate(1, [2])\n"
        "    except TypeError: pass\n"
        "    else: assert False\n"
    ),
    "entry_point": "add",
}
SCRIPT = {"code": "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'"}
ADD = "def add(a, b): return a + b"


def graded(program: str, tests: dict[str, Any], **options: Any) -> Reward:
    return answered(f"Here it is.\n```python\n{program}\n```\n", tests, **options)


def answered(text: str, tests: dict[str, Any], **options: Any) -> Reward:
    row = {"verifier_metadata": {"unit_tests": tests}}
    return judged("code", row, text, **{"cpu_s": 2, **options})


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", PRINTED),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())), end='  \\n\\n')", PRINTED),
        (ADD, CALLED),
        ("class Solution:\n    def add(self, a, b): return a + b", CALLED),
        (ADD, ASSERTED),
        (ADD, SCRIPT),
        ("print('hello')\n" + ADD, SCRIPT),
    ],
)
def test_a_right_program_passes(program: str, tests: dict[str, Any]) -> None:
    assert value(graded(program, tests)) == 1.0


ALWAYS_EQUAL = (
    "class Yes(int):\n"
    "    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\n"
    "    def __hash__(self): return 0\n"
    "def add(a, b): return Yes()"
)
TRICKS = {
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "exit inside": "import os\ndef add(a, b): os._exit(0)",
    "system exit inside": "def add(a, b): raise SystemExit(0)",
    "an object that equals everything": ALWAYS_EQUAL,
    "builtins": "import builtins\nbuiltins.isinstance = builtins.all = lambda *a: True\n"
    "def add(a, b): return 3",
    "a verdict of its own": "import os, sys\n"
    'os.write(1, b\'{"verdict": {"passed": true}}\\n{"value": true}\\n\' * 9)',
    "writing to every pipe": "import os\n"
    "for number in range(64):\n"
    '    try: os.write(number, b\'{"verdict": {"passed": true}}\\n\' * 9)\n'
    "    except OSError: pass\n"
    "def add(a, b): return 3",
    "reading the tests": "import glob\n"
    "text = ''.join(open(name).read() for name in glob.glob('/work/*') if 'solution' not in name)\n"
    "assert 'assert candidate' in text or 'outputs' in text",
    "frames and objects": "import gc, sys\n"
    "assert any('check' in vars(f.f_globals.get('__builtins__', {})) for f in [sys._getframe()])\n",
    "its own check": "def check(candidate): return True\ndef candidate(*a): return 3",
    "raising what is expected": "def add(a, b): raise AssertionError",
    "wrong": "def add(a, b): return 3",
    "nothing": "pass",
    "no program": "def (",
    "a generator that never ends": "import itertools\ndef add(a, b): return itertools.count()",
    "a nest": "def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "a huge number": "def add(a, b): return 10 ** 10 ** 6",
    "nan": "def add(a, b): return float('nan')",
    "a name that lies": "class NotImplementedType: pass\nadd = NotImplementedType",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_makes_a_wrong_program_right(trick: str) -> None:
    for tests in (PRINTED, CALLED, ASSERTED):
        assert value(graded(TRICKS[trick], tests)) == 0.0, tests


def test_exhausting_programs_are_wrong_and_not_invalid() -> None:
    for program in (
        "while True: pass",
        "x = bytearray(1 << 34)",
        "while True: print('x' * 10_000)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ):
        assert value(graded(program, PRINTED, cpu_s=1, wall_s=300, output_kb=64)) == 0.0


def test_the_share_of_passed_tests_is_the_reward_where_told_so() -> None:
    tests = {"inputs": ["1", "2", "3", "4"], "outputs": ["1", "2", "0", "4"]}
    reward = graded("print(input())", tests, reward="fraction")
    assert (value(reward), reward.components["passed"]) == (0.75, 0.75)  # type: ignore[union-attr]
    assert value(graded("print(input())", tests)) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"```python\ndef add(a, b): return 0\n```\nNo:\n```python\n{ADD}\n```", 1.0),
        (f"```python\n{ADD}\n```\nNo:\n```python\ndef add(a, b): return 0\n```", 0.0),
        (f"```python\n{ADD}\n```\nIt prints\n```\n3\n```", 1.0),
        (f"```\n{ADD}\n```", 1.0),
        (f"```python\n{ADD}", 0.0),  # cut off
        (ADD, 0.0),
        ("", 0.0),
    ],
)
def test_the_last_program_of_the_answer_counts(text: str, expected: float) -> None:
    assert value(answered(text, SCRIPT)) == expected


def test_without_a_fence_the_whole_answer_counts_where_told_so() -> None:
    assert value(answered(ADD, SCRIPT, require_fence=False)) == 1.0


@pytest.mark.parametrize(
    "tests",
    [
        {},
        {"inputs": ["1"], "outputs": []},
        {"inputs": ["1"], "outputs": ["1"], "code": "assert True"},
        {"code": " "},
        {"inputs": ["{"], "outputs": ["1"], "fn_name": "f"},
        {"inputs": ["1"], "outputs": ["}"], "fn_name": "f"},
    ],
)
def test_tests_that_test_nothing_are_a_bad_row(tests: dict[str, Any]) -> None:
    reward = graded(ADD, tests)
    assert not reward.valid
    assert reward.failure is FailureClass.BAD_ROW


def test_test_code_that_hangs_is_the_row_s_fault() -> None:
    reward = graded(ADD, {"code": "while True: pass"}, cpu_s=1)
    assert not reward.valid
    assert reward.failure is FailureClass.BAD_ROW


@pytest.mark.parametrize(
    ("line", "wanted", "expected"),
    [
        (b'{"value": 3}', 3, True),
        (b'{"value": 3.0}', 3, True),
        (b'{"value": true}', 1, False),
        (b'{"value": {"tuple": [1, {"tuple": [2]}]}}', [1, [2]], True),
        (b'{"value": {"dict": [[1, 2], ["a", null]]}}', {"1": 2, "a": None}, True),
        (b'{"value": {"dict": [[1, 2]]}}', {"1": 3}, False),
        (b'{"value": {"set": [1]}}', [1], False),
        (b'{"value": {"int": "0x20000000000000"}}', 2**53, True),
        (b'{"value": {"int": 5}}', 5, False),
        (b'{"value": {}}', {}, False),
        (b'{"value": {"dict": 1}}', {}, False),
        (b'{"raised": "X"}', None, False),
        (b"[]", None, False),
        (b"\xff", None, False),
        (b"[" * 100_000, None, False),
        (b'{"value": ' + b"9" * 10_000 + b"}", 9, False),
        (None, None, False),
    ],
)
def test_what_a_solution_sends_is_compared_as_json_and_never_trusted(
    line: bytes | None, wanted: Any, expected: bool
) -> None:
    assert returned(line, wanted) is expected


def test_keys_that_all_collide_take_no_time() -> None:
    keys = [[{"int": hex(n * (2**61 - 1))}, 0] for n in range(20_000)]
    assert not matches({"dict": keys}, {str(n): 0 for n in range(20_000)})
