"""The `rlbridge` command: errors of ours are one line and status 1; texts are shown whole."""

import json
import subprocess
import sys

import pytest

from rlbridge.cli.plugins import listed
from rlbridge.plugins import PluginReport


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlbridge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_install_line_stands_alone_and_whole_to_be_copied() -> None:
    install = f"pip install 'a[b,c]'  # {'long-' * 40}"
    report = PluginReport("toy", "m", False, reason="not installed: a", install=install)
    lines = list(listed([report]))
    assert "  toy  not installed: a" in lines
    assert install in [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "nemo_rl",
            ("supported  0.6, 0.7", "algorithm.name: grpo, sft, dpo", "rlbridge export RUN FOLDER"),
        ),
        ("verl", ("supported  0.9", "algorithm.name: grpo\n", "no converter")),
        ("math", ("rlbridge gym serve math", "expected_answer:", "cpu_s (5.0)")),
    ],
)
def test_plugins_shows_all_about_a_framework_or_an_evaluator(
    name: str, words: tuple[str, ...]
) -> None:
    shown = _run("plugins", name)
    assert shown.returncode == 0, shown.stderr
    assert all(word in shown.stdout for word in words), shown.stdout
    document = json.loads(_run("plugins", name, "--json").stdout)
    assert document["name"] == name
    if document["kind"] == "framework":
        ready = f"status     ready, version {document['version']}"
        assert (ready if document["available"] else document["install"]) in shown.stdout
        assert (document["code"] is not None) == document["available"]
        assert document["export"] == (name == "nemo_rl")


def test_the_near_name_of_a_plugin_is_told() -> None:
    result = _run("plugins", "nemo-rl")
    assert result.returncode == 1
    assert "no framework or evaluator named 'nemo-rl'; did you mean 'nemo_rl'?" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--config", "no-such.yaml"], "can't read the config no-such.yaml"),
        (["run", "--config", "examples/demo.yaml", "trainer.stepz=1"], "did you mean 'steps'"),
        (["run", "--config", "examples/demo.yaml", "-f", "verrl"], "did you mean 'verl'"),
        (
            ["run", "--config", "examples/demo.yaml", "--dry-run", "gym.serve=mathe"],
            "gym.serve: no evaluator named 'mathe'; did you mean 'math'?",
        ),
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
