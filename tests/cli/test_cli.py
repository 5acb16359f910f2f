"""The `rlbridge` command: errors of ours are one line and status 1; texts are shown whole."""

import subprocess
import sys

import pytest
from rich.console import Console

from rlbridge.cli.plugins import table_of
from rlbridge.plugins import PluginReport


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlbridge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_install_line_with_brackets_is_shown_whole() -> None:
    report = PluginReport("toy", "m", False, reason="not installed", install="pip install 'a[b,c]'")
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table_of([report]))
    assert "pip install 'a[b,c]'" in shown.get()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--config", "no-such.yaml"], "can't read the config no-such.yaml"),
        (["run", "--config", "examples/demo.yaml", "trainer.stepz=1"], "did you mean 'steps'"),
        (["run", "--config", "examples/demo.yaml", "-f", "verrl"], "did you mean 'verl'"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(arguments: list[str], words: str) -> None:
    result = _run(*arguments)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_help_teaches_with_examples() -> None:
    result = _run("run", "--help")
    assert result.returncode == 0
    assert "rlbridge run --config examples/demo.yaml" in result.stdout
